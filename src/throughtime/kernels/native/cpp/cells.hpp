// The pointwise part of each cell, forward and backward, for one sequence at one step: eqs. 10.8-10.9 and 10.40-10.47
// of Goodfellow, Bengio & Courville 2016, as throughtime.cells writes them.
#pragma once

#include "functions.hpp"
#include "problem.hpp"

namespace throughtime {

// What the forward step of one sequence reads and writes. Rows are whole, gate g of unit u at [g · units + u], but for
// `inputs`, b + U x(t), and `product`, W h(t-1): they hold units from `first` on, gate g's at [g · stride + u - first].
template <class Real>
struct ForwardRow {
    Index units;
    Index first;
    int count;  // of units, from `first` on
    const Real* inputs;
    Index inputs_stride;
    const Real* product;
    Index product_stride;
    Real* saved;            // (S, H), or null where nobody needs it and the step has one product
    const Real* bias_hh;    // GRU (G, H)
    const Real* peephole;   // LSTM (3, H)
    const Real* mask;       // GRU (H), of h(t-1) in a product
    const Real* zoneout_h;  // (P)
    const Real* zoneout_c;  // (H)
    bool fresh;    // the state before this step is zero
    bool streams;  // `saved`, `h_out` and `c_out` are written past the caches
    Real* h;       // (P) running state
    Real* c;       // (H)
    Real* h_out;   // (P)
    Real* c_out;   // (H), or null
};

// What nobody reads before the step is over.
template <class Real>
inline void put_result(const ForwardRow<Real>& row, Real* to, Vector<Real> value, int n) {
    if (row.streams) stream(to, value);
    else store(to, value, n);
}

template <class Real>
inline Vector<Real> keep(Vector<Real> old, Vector<Real> value, const Real* zoneout, Index at, int count) {
    if (!zoneout) return value;
    const Vector<Real> share = load(zoneout + at, count);
    return share * old + (Real(1) - share) * value;
}

// h(t) of units [u, u + n), once known: zoneout, and out with it.
template <class Real>
inline void put_state(const ForwardRow<Real>& row, Index u, int n, Vector<Real> h_old, Vector<Real> h) {
    h = keep(h_old, h, row.zoneout_h, u, n);
    store(row.h + u, h, n);
    put_result(row, row.h_out + u, h, n);
}

// The step of a cell with one product; of a projected LSTM, the first of its two, up to o ⊙ tanh c.
template <Cell cell, class Real>
[[gnu::noinline]] void step_forward(const ForwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const auto product = [&](int gate) { return load(row.product + gate * row.product_stride + j, n); };
        const auto input = [&](int gate) { return load(row.inputs + gate * row.inputs_stride + j, n); };
        const auto save = [&](int slot, V value) {
            if (row.saved) put_result(row, row.saved + slot * row.units + u, value, n);
        };
        if constexpr (is_lstm(cell)) {
            const V c_old = row.fresh ? V{} : load(row.c + u, n);
            V a_i = input(0) + product(0);
            V a_f = input(1) + product(1);
            const V a_g = input(2) + product(2);
            V a_o = input(3) + product(3);
            if (row.peephole) {
                a_i += load(row.peephole + u, n) * c_old;
                a_f += load(row.peephole + row.units + u, n) * c_old;
            }
            const V i = sigmoid<Real>(a_i), f = sigmoid<Real>(a_f), g = tangent(a_g);
            V c = f * c_old + i * g;
            if (row.peephole) a_o += load(row.peephole + 2 * row.units + u, n) * c;
            const V o = sigmoid<Real>(a_o);
            const V h = o * tangent(c);
            c = keep(c_old, c, row.zoneout_c, u, n);
            save(0, i);
            save(1, f);
            save(2, g);
            save(3, o);
            store(row.c + u, c, n);
            if (row.c_out) put_result(row, row.c_out + u, c, n);
            if constexpr (cell == Cell::kLstmProjected) {
                save(4, h);
            } else {
                put_state(row, u, n, row.fresh ? V{} : load(row.h + u, n), h);
            }
        } else {
            const V h_old = row.fresh ? V{} : load(row.h + u, n);
            const auto of_h = [&](int gate) {
                return row.bias_hh ? product(gate) + load(row.bias_hh + gate * row.units + u, n) : product(gate);
            };
            if constexpr (cell == Cell::kGru) {
                const V r = sigmoid<Real>(input(0) + of_h(0));
                const V z = sigmoid<Real>(input(1) + of_h(1));
                const V n_h = of_h(2);
                const V candidate = tangent(input(2) + r * n_h);
                save(0, r);
                save(1, z);
                save(2, candidate);
                save(3, n_h);
                put_state(row, u, n, h_old, candidate + z * (h_old - candidate));
            } else if constexpr (cell == Cell::kGruBefore) {
                const V r = sigmoid<Real>(input(0) + of_h(0));
                const V z = sigmoid<Real>(input(1) + of_h(1));
                save(0, r);
                save(1, z);
                save(3, r * (row.mask ? load(row.mask + u, n) * h_old : h_old));
            } else {
                const V a = input(0) + product(0);
                const V h = cell == Cell::kRnnTanh ? tangent(a) : select<Real>(a < Real(0), V{}, a);
                save(0, h);
                put_state(row, u, n, h_old, h);
            }
        }
    }
}

// The second half of a step with two products: of R (o ⊙ tanh c), or of W_n (r ⊙ h).
template <Cell cell, class Real>
inline void finish_forward(const ForwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const V h_old = row.fresh ? V{} : load(row.h + u, n);
        V h = load(row.product + j, n);
        if constexpr (cell == Cell::kGruBefore) {
            if (row.bias_hh) h += load(row.bias_hh + 2 * row.units + u, n);
            const V candidate = tangent(load(row.inputs + 2 * row.inputs_stride + j, n) + h);
            const V z = load(row.saved + row.units + u, n);
            store(row.saved + 2 * row.units + u, candidate, n);
            h = candidate + z * (h_old - candidate);
        }
        put_state(row, u, n, h_old, h);
    }
}

// What the backward step of one sequence reads and writes, units [first, first + count).
template <class Real>
struct BackwardRow {
    Index units;
    Index first;
    int count;
    const Real* saved;     // (S, H)
    const Real* h_old;     // (H) h(t-1), null for zero
    const Real* c_old;     // (H), null for zero
    const Real* peephole;  // LSTM (3, H)
    const Real* mask;      // GRU (H)
    const Real* zoneout_h;
    const Real* zoneout_c;
    const Real* d_output;  // (P), null for zero
    const Real* d_cell;    // (H), null for zero
    const Real* d_saved;   // (S, H), null for zero
    const Real* product;   // what came back through the second of two products, units from `first` on
    Real* d_h;             // (P) in: gradient of h(t); out: what reaches h(t-1) without a product
    Real* d_c;             // (H) in: gradient of c(t); out: of c(t-1)
    Real* products;        // (S, H) out: gradients of the summed inputs, gate by gate as W h saw them; GRU: r z, of
                           //   W_n h + b_hn, and then n as x saw it
    Real* d_state;         // (P) out: gradient of h(t), or null
    Real* d_memory;        // (H) out: gradient of c(t), or null
};

// The gradient of h(t) before zoneout, of units [u, u + n); `carried` is what zoneout sends on to h(t-1).
template <class Real>
inline Vector<Real> take_gradient(const BackwardRow<Real>& row, Index u, int n, Vector<Real>& carried) {
    Vector<Real> d_h = load(row.d_h + u, n);
    if (row.d_output) d_h += load(row.d_output + u, n);
    if (row.d_state) store(row.d_state + u, d_h, n);
    carried = Vector<Real>{};
    if (row.zoneout_h) {
        carried = load(row.zoneout_h + u, n) * d_h;
        d_h -= carried;
    }
    return d_h;
}

template <class Real>
inline void lstm_backward(const BackwardRow<Real>& row, Index u, int n, Vector<Real> d_h) {
    using V = Vector<Real>;
    const auto value = [&](int g) { return load(row.saved + g * row.units + u, n); };
    const auto handed = [&](int g) { return row.d_saved ? load(row.d_saved + g * row.units + u, n) : V{}; };
    const auto put = [&](int g, V v) { store(row.products + g * row.units + u, v, n); };
    const V c_old = row.c_old ? load(row.c_old + u, n) : V{};
    const V i = value(0), f = value(1), g = value(2), o = value(3);
    const V t = tangent(f * c_old + i * g);
    V d_c = load(row.d_c + u, n);
    if (row.d_cell) d_c += load(row.d_cell + u, n);
    V carried = {};
    if (row.zoneout_c) {
        // The state is what zoneout leaves, of which h(t) knows nothing.
        if (row.d_memory) store(row.d_memory + u, d_c, n);
        carried = load(row.zoneout_c + u, n) * d_c;
        d_c -= carried;
    }
    const V d_o = (d_h * t + handed(3)) * o * (Real(1) - o);
    d_c += d_h * o * (Real(1) - t * t);
    if (row.peephole) d_c += d_o * load(row.peephole + 2 * row.units + u, n);
    if (row.d_memory && !row.zoneout_c) store(row.d_memory + u, d_c, n);
    const V d_i = (d_c * g + handed(0)) * i * (Real(1) - i);
    const V d_f = (d_c * c_old + handed(1)) * f * (Real(1) - f);
    const V d_g = (d_c * i + handed(2)) * (Real(1) - g * g);
    carried += d_c * f;
    if (row.peephole)
        carried += d_i * load(row.peephole + u, n) + d_f * load(row.peephole + row.units + u, n);
    put(0, d_i);
    put(1, d_f);
    put(2, d_g);
    put(3, d_o);
    store(row.d_c + u, carried, n);
}

// The backward step of a cell with one product; of one with two, the half before the first product on the way back.
template <Cell cell, class Real>
[[gnu::noinline]] void step_backward(const BackwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const auto value = [&](int g) { return load(row.saved + g * row.units + u, n); };
        const auto handed = [&](int g) { return row.d_saved ? load(row.d_saved + g * row.units + u, n) : V{}; };
        const auto put = [&](int g, V v) { store(row.products + g * row.units + u, v, n); };
        V carried;
        const V d_h = take_gradient(row, u, n, carried);
        if constexpr (cell == Cell::kRnnTanh) {
            const V h = value(0);
            put(0, d_h * (Real(1) - h * h));
        } else if constexpr (cell == Cell::kRnnRelu) {
            put(0, select<Real>(value(0) > Real(0), d_h, V{}));
        } else if constexpr (cell == Cell::kLstm) {
            lstm_backward(row, u, n, d_h);
        } else if constexpr (cell == Cell::kLstmProjected) {
            put(4, d_h);  // here u counts the P units of h
        } else {
            const V h_old = row.h_old ? load(row.h_old + u, n) : V{};
            const V z = value(1), candidate = value(2);
            carried += d_h * z;
            const V d_n = (d_h * (Real(1) - z) + handed(2)) * (Real(1) - candidate * candidate);
            const V d_z = (d_h * (h_old - candidate) + handed(1)) * z * (Real(1) - z);
            put(1, d_z);
            if constexpr (cell == Cell::kGru) {
                const V r = value(0);
                put(0, (d_n * value(3) + handed(0)) * r * (Real(1) - r));
                put(2, d_n * r);
                put(3, d_n);
            } else {
                put(2, d_n);
            }
        }
        store(row.d_h + u, carried, n);
    }
}

// The other half of a backward step with two products.
template <Cell cell, class Real>
inline void finish_backward(const BackwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const V back = load(row.product + j, n);
        if constexpr (cell == Cell::kLstmProjected) {
            lstm_backward(row, u, n, back);
        } else {
            // back: the gradient of r ⊙ h(t-1), h masked
            const V r = load(row.saved + u, n);
            V h = row.h_old ? load(row.h_old + u, n) : V{};
            V d_h = back * r;
            if (row.mask) {
                h *= load(row.mask + u, n);
                d_h *= load(row.mask + u, n);
            }
            V d_r = back * h;
            if (row.d_saved) d_r += load(row.d_saved + u, n);
            store(row.products + u, d_r * r * (Real(1) - r), n);
            store(row.d_h + u, load(row.d_h + u, n) + d_h, n);
        }
    }
}

}  // namespace throughtime
