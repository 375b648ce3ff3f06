// A model's weights in the order in which a step reads them.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>

#include "generation.hpp"
#include "many_rows.hpp"

namespace throughtime {

// One layer; vectors of values stand panel by panel as the columns of its matrices do, units filled up with zeros.
template <class Storage>
struct PackedLayer {
    Cell cell;
    Index units;    // H
    Index inputs;   // I
    bool from_table = false;       // what x contributes is looked up
    PackedMatrix<Storage> x;       // W_ih
    PackedMatrix<Storage> h;       // W_hh
    float* start = nullptr;        // biases of the summed inputs
    float* bias_hh = nullptr;      // GRU: b_hn, which the reset gate scales
    float* peephole = nullptr;     // LSTM: (panel, 3, block, column)
    float* zoneout_h = nullptr;    // (H)
    float* zoneout_c = nullptr;    // (H)

    Index width() const { return padded(units); }
    Index panel_units(Index p) const { return h.blocks_of(p) * kBlock; }
    Index first_unit(Index p) const { return h.first_block(p) * kBlock; }
};

// The same layer as many rows read it; values stand panel by panel, group by group.
struct ManyRowsLayer {
    Panels<Single> x, h;
    const float* start;
};

// Memory in few large pieces: small matrices then share large pages, which no two of them could have for themselves.
class Arena {
  public:
    template <class Element>
    Element* take(Index count) {
        const Index bytes = round_up(count * static_cast<Index>(sizeof(Element)), 64);
        if (end_ - at_ < bytes) {
            const Index size = std::max(bytes, kPiece);
            at_ = memory_.take<char>(size);
            end_ = at_ + size;
        }
        char* taken = at_;
        at_ += bytes;
        return reinterpret_cast<Element*>(taken);
    }

  private:
    static constexpr Index kPiece = Index{2} << 20;
    Buffers memory_;
    char* at_ = nullptr;
    char* end_ = nullptr;
};

template <class Storage>
class PackedModelOf : public PackedModel {
  public:
    PackedModelOf(const ModelSource& source, int threads) {
        residual = source.residual;
        vocabulary = source.vocabulary;
        const bool looks_up = vocabulary > 0;
        const LayerSource& first = source.layers.front();
        const Index table_width = gates_of(first.cell) * padded(first.units);
        const bool tabled = looks_up && vocabulary * table_width * static_cast<Index>(sizeof(float)) <= kTableBytes;
        for (const LayerSource& layer : source.layers) layers.push_back(take_layer(layer, tabled && layers.empty()));
        if (source.readout) {
            take(readout, source.layers.back().units, 1, vocabulary);
            readout_start = memory_.take<float>(readout.width());
        }
        run_together(threads, [&](const Member& member) {
            for (std::size_t l = 0; l < layers.size(); ++l) pack_layer(member, layers[l], source.layers[l]);
            for (Index p = member.index; p < readout.panels() && source.readout; p += member.count) {
                readout.pack(p, source.readout);
                readout.pack_values(p, source.bias, -std::numeric_limits<float>::infinity(), readout_start);
            }
        });
        if (tabled) make_table(source, threads);
        embedding = looks_up && !tabled ? source.embedding : nullptr;
    }

    std::unique_ptr<Stepper> stepper() const override;
    std::unique_ptr<StatelessStepper> stateless_stepper() const override;
    Index vocabulary_size() const override { return vocabulary; }
    Index bytes() const override { return bytes_; }
    bool has_table() const override { return table != nullptr; }
    bool has_readout() const override { return readout.depth > 0; }

    // The layers and the readout as many rows read them: packed a second time when such rows first come.
    const std::vector<ManyRowsLayer>& layers_of_many() const {
        pack_for_many();
        return many_layers_;
    }
    const ManyColumns& readout_of_many() const {
        pack_for_many();
        return many_readout_;
    }

    std::vector<PackedLayer<Storage>> layers;
    bool residual;
    Index vocabulary;
    PackedMatrix<Storage> readout;
    float* readout_start = nullptr;    // its bias; -infinity where the columns are filled up
    float* table = nullptr;            // (V, G H of the first layer), biases added; or null
    const float* embedding = nullptr;  // (V, E), or null

  private:
    void pack_for_many() const {
        if constexpr (!Storage::kQuantised) {
            std::call_once(packed_for_many_, [&] {
                for (const PackedLayer<Storage>& layer : layers) {
                    const Panels<Single> x = layer.from_table ? Panels<Single>{} : panels_of(layer.x, many_memory_);
                    many_layers_.push_back({x, panels_of(layer.h, many_memory_),
                                            values_of(layer.h, layer.start, 0.0f, many_memory_)});
                }
                if (!has_readout()) return;
                constexpr float kNone = -std::numeric_limits<float>::infinity();
                many_readout_ = {panels_of(readout, many_memory_),
                                 values_of(readout, readout_start, kNone, many_memory_)};
            });
        }
    }

    void take(PackedMatrix<Storage>& matrix, Index depth, int groups, Index columns) {
        matrix.depth = depth;
        matrix.groups = groups;
        matrix.columns = columns;
        matrix.take(memory_);
        bytes_ += matrix.bytes();
    }

    float* zeros(Index count) {
        float* values = memory_.take<float>(count);
        std::fill(values, values + count, 0.0f);
        return values;
    }

    PackedLayer<Storage> take_layer(const LayerSource& source, bool from_table) {
        PackedLayer<Storage> layer{};
        layer.cell = source.cell;
        layer.units = source.units;
        layer.inputs = source.inputs;
        layer.from_table = from_table;
        const int gates = gates_of(source.cell);
        if (!from_table) take(layer.x, source.inputs, gates, source.units);
        take(layer.h, source.units, gates, source.units);
        layer.start = zeros(layer.h.width());
        if (source.cell == Cell::kGru && source.bias_hh) layer.bias_hh = zeros(layer.h.width());
        if (source.peephole) layer.peephole = zeros(3 * layer.width());
        const auto share = [&](float value) -> float* {
            if (value == 0) return nullptr;
            float* values = memory_.take<float>(layer.width());
            std::fill(values, values + layer.width(), value);
            return values;
        };
        layer.zoneout_h = share(source.zoneout_h);
        layer.zoneout_c = share(source.zoneout_c);
        return layer;
    }

    void pack_layer(const Member& member, const PackedLayer<Storage>& layer, const LayerSource& source) const {
        const PackedMatrix<Storage>& h = layer.h;
        for (Index p = member.index; p < h.panels(); p += member.count) {
            if (!layer.from_table) layer.x.pack(p, source.weight_ih);
            h.pack(p, source.weight_hh);
            h.each_column(p, [&](Index at, Index row) {
                if (row < 0) return;
                const Index place = h.place(p) + at;
                const bool apart = source.cell == Cell::kGru && row >= 2 * source.units;
                if (source.bias_ih) layer.start[place] += source.bias_ih[row];
                if (source.bias_hh) (apart ? layer.bias_hh : layer.start)[place] += source.bias_hh[row];
            });
            for (int gate = 0; layer.peephole && gate < 3; ++gate)
                for (Index j = 0; j < layer.panel_units(p) && layer.first_unit(p) + j < source.units; ++j)
                    layer.peephole[3 * layer.first_unit(p) + gate * layer.panel_units(p) + j] =
                        source.peephole[gate * source.units + layer.first_unit(p) + j];
        }
    }

    // In full precision, whatever the weights are stored in: it is read, not multiplied.
    void make_table(const ModelSource& source, int threads) {
        const LayerSource& layer = source.layers.front();
        Arena scratch;
        PackedMatrix<StoredSingle> x;
        x.depth = layer.inputs;
        x.groups = gates_of(layer.cell);
        x.columns = layer.units;
        x.take(scratch);
        table = memory_.take<float>(vocabulary * x.width());
        run_together(threads, [&](const Member& member) {
            for (Index p = member.index; p < x.panels(); p += member.count) {
                x.pack(p, layer.weight_ih);
                multiply_panel(x, p, vocabulary, {source.embedding, layer.inputs, nullptr},
                               layers.front().start + x.place(p), table + x.place(p), x.width());
            }
        });
    }

    Arena memory_;
    Index bytes_ = 0;
    mutable std::once_flag packed_for_many_;
    mutable Arena many_memory_;
    mutable std::vector<ManyRowsLayer> many_layers_;
    mutable ManyColumns many_readout_{};
};

}  // namespace throughtime
