// The pointwise part of each cell, forward and backward, for one sequence at one step: eqs. 10.8-10.9 and 10.40-10.47
// of Goodfellow, Bengio & Courville 2016, as throughtime.cells writes them.
#pragma once

#include "functions.hpp"
#include "problem.hpp"

namespace throughtime {

// What the forward step of one sequence reads and writes, from unit `first` of the cell on. Gate g of unit u stands at
// [g · units + u] in rows of gates, and at [g · product_stride + u - first] in the recurrent product.
template <class Real>
struct ForwardRow {
    Index units;
    Index first;
    int count;  // of units
    const Real* product;
    Index product_stride;
    Real* gates;               // summed inputs of x; becomes what is saved
    const Real* bias_hh;       // GRU
    const Real* peephole;      // LSTM
    const Real* zoneout_h;
    const Real* zoneout_c;
    bool fresh;   // the state before this step is zero
    Real* h;      // (H) running state
    Real* c;      // (H)
    Real* h_out;  // (H)
    Real* c_out;  // (H), or null
};

template <class Real>
inline Vector<Real> keep(Vector<Real> old, Vector<Real> value, const Real* zoneout, Index at, int count) {
    if (!zoneout) return value;
    const Vector<Real> share = load(zoneout + at, count);
    return share * old + (Real(1) - share) * value;
}

template <Cell cell, class Real>
inline void step_forward(const ForwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const V h_old = row.fresh ? V{} : load(row.h + u, n);
        const auto product = [&](int gate) { return load(row.product + gate * row.product_stride + j, n); };
        const auto gate_at = [&](int gate) { return row.gates + gate * row.units + u; };
        V h;
        if constexpr (cell == Cell::kRnnTanh || cell == Cell::kRnnRelu) {
            const V a = load(gate_at(0), n) + product(0);
            if constexpr (cell == Cell::kRnnTanh) {
                h = tangent(a);
            } else {
                h = select<Real>(a < Real(0), V{}, a);
            }
            store(gate_at(0), h, n);
        } else if constexpr (cell == Cell::kLstm) {
            const V c_old = row.fresh ? V{} : load(row.c + u, n);
            V a_i = load(gate_at(0), n) + product(0);
            V a_f = load(gate_at(1), n) + product(1);
            const V a_g = load(gate_at(2), n) + product(2);
            V a_o = load(gate_at(3), n) + product(3);
            if (row.peephole) {
                a_i += load(row.peephole + u, n) * c_old;
                a_f += load(row.peephole + row.units + u, n) * c_old;
            }
            const V i = sigmoid<Real>(a_i), f = sigmoid<Real>(a_f), g = tangent(a_g);
            V c = f * c_old + i * g;
            if (row.peephole) a_o += load(row.peephole + 2 * row.units + u, n) * c;
            const V o = sigmoid<Real>(a_o);
            h = o * tangent(c);
            c = keep(c_old, c, row.zoneout_c, u, n);
            store(gate_at(0), i, n);
            store(gate_at(1), f, n);
            store(gate_at(2), g, n);
            store(gate_at(3), o, n);
            store(row.c + u, c, n);
            if (row.c_out) store(row.c_out + u, c, n);
        } else {
            const auto of_h = [&](int gate) {
                return row.bias_hh ? product(gate) + load(row.bias_hh + gate * row.units + u, n) : product(gate);
            };
            const V r = sigmoid<Real>(load(gate_at(0), n) + of_h(0));
            const V z = sigmoid<Real>(load(gate_at(1), n) + of_h(1));
            const V n_h = of_h(2);
            const V candidate = tangent(load(gate_at(2), n) + r * n_h);
            h = candidate + z * (h_old - candidate);
            store(gate_at(0), r, n);
            store(gate_at(1), z, n);
            store(gate_at(2), candidate, n);
            store(gate_at(3), n_h, n);
        }
        h = keep(h_old, h, row.zoneout_h, u, n);
        store(row.h + u, h, n);
        store(row.h_out + u, h, n);
    }
}

// What the backward step of one sequence reads and writes, from unit `first` on.
template <class Real>
struct BackwardRow {
    Index units;
    Index first;
    int count;
    const Real* gates;     // (S, H) as saved
    const Real* h_old;     // (H) h(t-1), null for zero
    const Real* c_old;     // (H), null for zero
    const Real* peephole;
    const Real* zoneout_h;
    const Real* zoneout_c;
    const Real* d_output;  // (H), null for zero
    const Real* d_cell;    // (H), null for zero
    const Real* d_gates;   // (S, H), null for zero
    Real* d_h;             // (H) in: gradient of h(t); out: what reaches h(t-1) without a product
    Real* d_c;             // (H) in: gradient of c(t); out: of c(t-1)
    Real* products;        // (S, H) out: gradients of the summed inputs
};

template <Cell cell, class Real>
inline void step_backward(const BackwardRow<Real>& row) {
    using V = Vector<Real>;
    constexpr int kStep = kLanes<Real>;
    for (int j = 0; j < row.count; j += kStep) {
        const int n = std::min(kStep, row.count - j);
        const Index u = row.first + j;
        const auto gate = [&](int g) { return load(row.gates + g * row.units + u, n); };
        const auto handed = [&](int g) { return row.d_gates ? load(row.d_gates + g * row.units + u, n) : V{}; };
        const auto put = [&](int g, V value) { store(row.products + g * row.units + u, value, n); };
        V d_h = load(row.d_h + u, n);
        if (row.d_output) d_h += load(row.d_output + u, n);
        V carried = {};
        if (row.zoneout_h) {
            const V share = load(row.zoneout_h + u, n);
            carried = share * d_h;
            d_h -= carried;
        }
        if constexpr (cell == Cell::kRnnTanh || cell == Cell::kRnnRelu) {
            const V h = gate(0);
            if constexpr (cell == Cell::kRnnTanh) {
                put(0, d_h * (Real(1) - h * h));
            } else {
                put(0, select<Real>(h > Real(0), d_h, V{}));
            }
        } else if constexpr (cell == Cell::kLstm) {
            const V c_old = row.c_old ? load(row.c_old + u, n) : V{};
            const V i = gate(0), f = gate(1), g = gate(2), o = gate(3);
            const V c = f * c_old + i * g;
            const V t = tangent(c);
            V d_c = load(row.d_c + u, n);
            if (row.d_cell) d_c += load(row.d_cell + u, n);
            V c_carried = {};
            if (row.zoneout_c) {
                const V share = load(row.zoneout_c + u, n);
                c_carried = share * d_c;
                d_c -= c_carried;
            }
            const V d_o = (d_h * t + handed(3)) * o * (Real(1) - o);
            d_c += d_h * o * (Real(1) - t * t);
            if (row.peephole) d_c += d_o * load(row.peephole + 2 * row.units + u, n);
            const V d_i = (d_c * g + handed(0)) * i * (Real(1) - i);
            const V d_f = (d_c * c_old + handed(1)) * f * (Real(1) - f);
            const V d_g = (d_c * i + handed(2)) * (Real(1) - g * g);
            c_carried += d_c * f;
            if (row.peephole) {
                c_carried += d_i * load(row.peephole + u, n) + d_f * load(row.peephole + row.units + u, n);
            }
            put(0, d_i);
            put(1, d_f);
            put(2, d_g);
            put(3, d_o);
            store(row.d_c + u, c_carried, n);
        } else {
            const V h_old = row.h_old ? load(row.h_old + u, n) : V{};
            const V r = gate(0), z = gate(1), candidate = gate(2), n_h = gate(3);
            carried += d_h * z;
            const V d_n = (d_h * (Real(1) - z) + handed(2)) * (Real(1) - candidate * candidate);
            const V d_r = (d_n * n_h + handed(0)) * r * (Real(1) - r);
            const V d_z = (d_h * (h_old - candidate) + handed(1)) * z * (Real(1) - z);
            put(0, d_r);
            put(1, d_z);
            put(2, d_n);
            put(3, d_n * r);
        }
        store(row.d_h + u, carried, n);
    }
}

}  // namespace throughtime
