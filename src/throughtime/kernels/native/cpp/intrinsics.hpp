// The few instructions that no compiler finds by itself.
#pragma once

#if defined(__x86_64__)
// GCC 12 takes the registers that its own headers leave undefined on purpose for a mistake (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
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

// Has the compiler load a vector once, where it would put the load into each instruction that uses it.
template <class Vector>
inline void keep_in_register(Vector& v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#else
    (void)v;
#endif
}

#if defined(__AVX512F__)
// Lane by lane the greater of v and `low`, the less of v and `high`; a NaN in v stays.
inline __m512 at_least(__m512 v, __m512 low) { return _mm512_max_ps(low, v); }
inline __m512 at_most(__m512 v, __m512 high) { return _mm512_min_ps(high, v); }
#endif

// Writes a vector to memory past the caches, without reading what stood there; `to` is aligned to the vector's size.
template <class Vector, class Real>
inline void stream(Real* to, Vector v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
    __builtin_memcpy(to, &v, sizeof v);
#endif
}

// What this thread has streamed is there for the others.
inline void finish_streams() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// While it lives, this thread takes denormal numbers for zero. A gradient that vanishes becomes denormal before it is zero,
// and a processor computes with such numbers a hundred times more slowly; below 1e-38 they are of no use to anybody.
class DenormalsAreZero {
  public:
    DenormalsAreZero() { set(before_ | kFlags); }
    ~DenormalsAreZero() { set(before_); }
    DenormalsAreZero(const DenormalsAreZero&) = delete;
    DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

  private:
#if defined(__x86_64__)
    using Register = unsigned;
    static constexpr Register kFlags = 0x8040;  // what is computed (FTZ), and what is read (DAZ)
    static Register get() { return _mm_getcsr(); }
    static void set(Register flags) { _mm_setcsr(flags); }
#elif defined(__aarch64__)
    using Register = unsigned long;
    static constexpr Register kFlags = 1ul << 24;  // FZ
    static Register get() {
        Register flags;
        asm volatile("mrs %0, fpcr" : "=r"(flags));
        return flags;
    }
    static void set(Register flags) { asm volatile("msr fpcr, %0" : : "r"(flags)); }
#else
    using Register = unsigned;
    static constexpr Register kFlags = 0;
    static Register get() { return 0; }
    static void set(Register) {}
#endif
    const Register before_ = get();
};

#if defined(__AVX512F__)
// 1 / v to about one unit in the last place: an estimate of 14 bits and one step of Newton's method, after which 28 are
// right, a quarter of the time of a division. v must be neither zero, denormal nor infinite.
inline __m512 reciprocal(__m512 v) {
    const __m512 estimate = _mm512_rcp14_ps(v);
    const __m512 error = _mm512_fnmadd_ps(v, estimate, _mm512_set1_ps(1.0f));
    return _mm512_fmadd_ps(error, estimate, estimate);
}
#endif

#if defined(__AVX512BF16__)
// Two vectors of floats as one of bfloat16, `low` first.
inline __m512i to_bfloat16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Lane by lane of 32 bits the pair of `even` and `odd`, as bfloat16.
inline __m512i to_bfloat16_pairs(__m512 even, __m512 odd) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(pairs, to_bfloat16(even, odd));
}

// c + a0 b0 + a1 b1 for each pair of bfloat16 in a lane of 32 bits.
inline __m512 dot_pairs(__m512 c, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#endif

#if defined(__AVX512VNNI__)
// c + Σ a[i] b[i] over the four bytes of each lane, a unsigned, b signed.
inline __m512i dot_bytes(__m512i c, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(c, a, b); }
#endif

// a0 b0 + a1 b1 for each pair of 16-bit integers in a lane of 32 bits.
#if defined(__AVX512BW__)
inline __m512i multiply_pairs(__m512i a, __m512i b) { return _mm512_madd_epi16(a, b); }
#elif defined(__AVX2__)
inline __m256i multiply_pairs(__m256i a, __m256i b) { return _mm256_madd_epi16(a, b); }
#elif defined(__x86_64__)
inline __m128i multiply_pairs(__m128i a, __m128i b) { return _mm_madd_epi16(a, b); }
#endif

}  // namespace throughtime::intrinsics
