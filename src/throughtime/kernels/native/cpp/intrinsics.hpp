// The few instructions that no compiler finds by itself.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace throughtime::intrinsics {

// Tells the core that this is a loop that waits.
inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__AVX512F__)
// 1 / v to about one unit in the last place: an estimate of 14 bits and one step of Newton's method, a quarter of the
// time of a division. v must be neither zero, denormal nor infinite.
inline __m512 reciprocal(__m512 v) {
    const __m512 estimate = _mm512_rcp14_ps(v);
    const __m512 error = _mm512_fnmadd_ps(v, estimate, _mm512_set1_ps(1.0f));
    return _mm512_fmadd_ps(_mm512_fmadd_ps(error, error, error), estimate, estimate);
}
#endif

#if defined(__AVX512BF16__)
// c + a0 b0 + a1 b1 for each pair of bfloat16 in a lane of 32 bits.
inline __m512 dot_pairs(__m512 c, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#endif

#if defined(__AVX512VNNI__)
// c + Σ a[i] b[i] over the four bytes of each lane, a unsigned, b signed.
inline __m512i dot_bytes(__m512i c, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(c, a, b); }
#endif

}  // namespace throughtime::intrinsics
