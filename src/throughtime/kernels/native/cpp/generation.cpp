// The Python face of generation. Tensors come as addresses: throughtime.kernels.native.generation, the only caller, has
// made sure of their types, sizes and layout, but not of the values of tokens.
#include "generation.hpp"

#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "stepping.hpp"

namespace nb = nanobind;
namespace throughtime {

std::unique_ptr<PackedModel> PackedModel::pack(const std::string& precision, const ModelSource& source, int threads) {
    if (precision == "fp32") return std::make_unique<PackedModelOf<StoredSingle>>(source, threads);
    if (precision == "bf16") return std::make_unique<PackedModelOf<StoredBfloat16>>(source, threads);
    if (precision == "int8") return std::make_unique<PackedModelOf<StoredBytes>>(source, threads);
    throw nb::value_error(("no precision named " + precision).c_str());
}

namespace {

Cell cell_of(const std::string& name) {
    if (name == "rnn_tanh") return Cell::kRnnTanh;
    if (name == "rnn_relu") return Cell::kRnnRelu;
    if (name == "lstm") return Cell::kLstm;
    if (name == "gru") return Cell::kGru;
    throw nb::value_error(("no cell named " + name).c_str());
}

template <class Element>
Element* at(std::uintptr_t address) {
    return reinterpret_cast<Element*>(address);
}

LayerSource layer_of(const nb::dict& given) {
    const Addresses tensors(given);
    return {cell_of(nb::cast<std::string>(given["cell"])),
            nb::cast<Index>(given["inputs"]),
            nb::cast<Index>(given["units"]),
            tensors.at<const float>("weight_ih"),
            tensors.at<const float>("weight_hh"),
            tensors.at<const float>("bias_ih"),
            tensors.at<const float>("bias_hh"),
            tensors.at<const float>("weight_peephole"),
            nb::cast<float>(given["zoneout_h"]),
            nb::cast<float>(given["zoneout_c"])};
}

std::unique_ptr<PackedModel> pack(const std::string& precision, const std::vector<nb::dict>& layers, bool residual,
                                  Index vocabulary, const nb::dict& ends, int threads) {
    ModelSource source{};
    for (const nb::dict& layer : layers) source.layers.push_back(layer_of(layer));
    const Addresses tensors(ends);
    source.residual = residual;
    source.vocabulary = vocabulary;
    source.embedding = tensors.at<const float>("embedding");
    source.readout = tensors.at<const float>("readout");
    source.bias = tensors.at<const float>("bias");
    const nb::gil_scoped_release released;
    return PackedModel::pack(precision, source, threads);
}

// A number that another content gives another of: each word counts by its value and its place, in lanes side by side.
std::uint64_t fingerprint(std::uintptr_t address, Index bytes) {
    using Words __attribute__((vector_size(kVectorBytes))) = std::uint64_t;
    constexpr Index kLanesBytes = 4 * sizeof(Words);
    const nb::gil_scoped_release released;
    const char* from = at<const char>(address);
    Words hashes[4] = {};
    const auto add = [&](const char* block) {
        for (int i = 0; i < 4; ++i) {
            Words words;
            std::memcpy(&words, block + i * static_cast<Index>(sizeof words), sizeof words);
            hashes[i] = (hashes[i] << 5) + hashes[i] + words;
        }
    };
    Index done = 0;
    for (; done + kLanesBytes <= bytes; done += kLanesBytes) add(from + done);
    char rest[kLanesBytes] = {};
    std::copy(from + done, from + bytes, rest);
    add(rest);
    auto result = static_cast<std::uint64_t>(bytes);
    for (const Words& words : hashes)
        for (std::size_t lane = 0; lane < sizeof words / sizeof words[0]; ++lane)
            result = (result ^ words[lane]) * 0x9e3779b97f4a7c15u;
    return result;
}

// While the lock of the interpreter is released, another Python thread may come.
class Turn {
  public:
    explicit Turn(std::atomic<bool>& taken) : taken_(taken) {
        if (taken_.exchange(true)) throw std::runtime_error("this stepper is at work in another thread");
    }
    ~Turn() { taken_.store(false); }

  private:
    std::atomic<bool>& taken_;
};

void check(const std::int64_t* indices, Index count, Index limit, const char* of) {
    for (Index i = 0; i < count; ++i) {
        if (indices[i] < 0 || indices[i] >= limit)
            throw nb::index_error((std::to_string(indices[i]) + " is outside of " + of + ", 0.." +
                                   std::to_string(limit - 1)).c_str());
    }
}

// A stepper as Python holds it: its model lives as long as it does, and one thread has it at a time.
class Rows {
  public:
    explicit Rows(const PackedModel& model) : vocabulary_(model.vocabulary_size()), stepper_(model.stepper()) {}

    void begin(Index rows) {
        const Turn turn(taken_);
        stepper_->begin(rows);
    }

    Index rows() const { return stepper_->rows(); }

    void read(std::uintptr_t tokens, Index steps, int threads) {
        const Turn turn(taken_);
        check(at<const std::int64_t>(tokens), steps * rows(), vocabulary_, "the vocabulary");
        const nb::gil_scoped_release released;
        stepper_->read(at<const std::int64_t>(tokens), steps, threads);
    }

    void step(std::uintptr_t tokens, std::uintptr_t logits, bool normalised, int threads) {
        const Turn turn(taken_);
        check(at<const std::int64_t>(tokens), rows(), vocabulary_, "the vocabulary");
        const nb::gil_scoped_release released;
        stepper_->read(at<const std::int64_t>(tokens), 1, threads);
        stepper_->logits(at<float>(logits), normalised, threads);
    }

    void feed(std::uintptr_t inputs, std::uintptr_t outputs, int threads) {
        const Turn turn(taken_);
        const nb::gil_scoped_release released;
        stepper_->feed(at<const float>(inputs), threads);
        stepper_->outputs(at<float>(outputs));
    }

    void logits(std::uintptr_t to, bool normalised, int threads) {
        const Turn turn(taken_);
        check_logits();
        const nb::gil_scoped_release released;
        stepper_->logits(at<float>(to), normalised, threads);
    }

    Index generate(Index steps, std::uintptr_t first, const nb::tuple& rule, std::uintptr_t uniforms,
                   std::uintptr_t seen, std::uintptr_t alive, std::uintptr_t tokens, std::uintptr_t went_on,
                   std::uintptr_t log_probs, int threads) {
        const Turn turn(taken_);
        Chunk chunk{};
        chunk.steps = steps;
        chunk.first = at<const std::int64_t>(first);
        chunk.rule = {nb::cast<double>(rule[0]), nb::cast<Index>(rule[1]),  nb::cast<double>(rule[2]),
                      nb::cast<double>(rule[3]), nb::cast<double>(rule[4]), nb::cast<Index>(rule[5])};
        chunk.uniforms = at<const double>(uniforms);
        chunk.seen = at<std::uint8_t>(seen);
        chunk.alive = at<std::uint8_t>(alive);
        chunk.tokens = at<std::int64_t>(tokens);
        chunk.went_on = at<std::uint8_t>(went_on);
        chunk.log_probs = at<double>(log_probs);
        if (chunk.first) {
            check(chunk.first, rows(), vocabulary_, "the vocabulary");
        } else {
            check_logits();
        }
        const nb::gil_scoped_release released;
        return stepper_->generate(chunk, threads);
    }

    void reorder(std::uintptr_t indices, Index count) {
        const Turn turn(taken_);
        check(at<const std::int64_t>(indices), count, rows(), "the rows");
        stepper_->reorder(at<const std::int64_t>(indices), count);
    }

    bool copy_state(Index layer, bool memory, std::uintptr_t to) {
        const Turn turn(taken_);
        return stepper_->copy_state(layer, memory, at<float>(to));
    }

    bool set_state(Index layer, bool memory, std::uintptr_t from) {
        const Turn turn(taken_);
        return stepper_->set_state(layer, memory, at<const float>(from));
    }

  private:
    void check_logits() const {
        if (!stepper_->has_logits()) throw std::runtime_error("there are no logits yet: read or step first");
    }

    Index vocabulary_;
    std::unique_ptr<Stepper> stepper_;
    std::atomic<bool> taken_{false};
};

// The same without states of its own.
class Steps {
  public:
    explicit Steps(const PackedModel& model) : vocabulary_(model.vocabulary_size()), steps_(model.stateless_stepper()) {
        if (!steps_) throw nb::value_error("weights in full precision or bfloat16 are advanced so, no others");
    }

    void advance(Index rows, Index parents, const nb::dict& given, const std::vector<nb::tuple>& before,
                 const std::vector<nb::tuple>& after, int threads) {
        const Turn turn(taken_);
        const Addresses tensors(given);
        AdvanceCall call{rows, tensors.at<const std::int64_t>("tokens"), tensors.at<const float>("inputs"),
                         tensors.at<const std::int64_t>("picked"), {}, {}, tensors.at<float>("outputs")};
        const auto take = [](const std::vector<nb::tuple>& states, std::vector<AdvanceCall::State>& to) {
            for (const nb::tuple& state : states)
                to.push_back({at<float>(nb::cast<std::uintptr_t>(state[0])), at<float>(nb::cast<std::uintptr_t>(state[1]))});
        };
        take(before, call.before);
        take(after, call.after);
        check(call.picked, rows, parents, "the rows");
        if (call.tokens) check(call.tokens, rows, vocabulary_, "the vocabulary");
        const nb::gil_scoped_release released;
        steps_->advance(call, threads);
    }

  private:
    Index vocabulary_;
    std::unique_ptr<StatelessStepper> steps_;
    std::atomic<bool> taken_{false};
};

}  // namespace

void bind_generation(nb::module_& m) {
    nb::class_<PackedModel>(m, "PackedModel", "Weights in the order in which one step reads them.")
        .def_prop_ro("bytes", &PackedModel::bytes, "Bytes of weights that one step reads.")
        .def_prop_ro("has_table", &PackedModel::has_table,
                     "Whether what a token contributes to the first layer is looked up.")
        .def_prop_ro("has_readout", &PackedModel::has_readout, "Whether there are logits.");
    m.def("pack_model", &pack, nb::arg("precision"), nb::arg("layers"), nb::arg("residual"), nb::arg("vocabulary"),
          nb::arg("ends"), nb::arg("threads"),
          "Pack layers; tensors are addresses by name, in `ends` those of embedding and readout.");
    m.def("fingerprint", &fingerprint, nb::arg("address"), nb::arg("bytes"), "A number that goes with the bytes there.");
    nb::class_<Rows>(m, "Stepper", "Rows of a packed model: their states, and the logits after their last step.")
        .def(nb::init<const PackedModel&>(), nb::arg("model"), nb::keep_alive<1, 2>())
        .def_prop_ro("rows", &Rows::rows)
        .def("begin", &Rows::begin, nb::arg("rows"), "Set all states of so many rows to zero.")
        .def("read", &Rows::read, nb::arg("tokens"), nb::arg("steps"), nb::arg("threads"), "Read tokens (T, B).")
        .def("step", &Rows::step, nb::arg("tokens"), nb::arg("logits"), nb::arg("normalised"), nb::arg("threads"),
             "Read tokens (B), write logits or log-probabilities (B, V).")
        .def("feed", &Rows::feed, nb::arg("inputs"), nb::arg("outputs"), nb::arg("threads"),
             "Read vectors (B, I), write the last layer's outputs (B, H).")
        .def("logits", &Rows::logits, nb::arg("to"), nb::arg("normalised"), nb::arg("threads"),
             "Write the logits or log-probabilities (B, V) after the last step.")
        .def("generate", &Rows::generate, nb::arg("steps"), nb::arg("first"), nb::arg("rule"), nb::arg("uniforms"),
             nb::arg("seen"), nb::arg("alive"), nb::arg("tokens"), nb::arg("went_on"), nb::arg("log_probs"),
             nb::arg("threads"), "Choose and feed tokens until all rows have ended; returns the number of steps made.")
        .def("reorder", &Rows::reorder, nb::arg("indices"), nb::arg("count"), "Row i becomes what indices[i] was.")
        .def("copy_state", &Rows::copy_state, nb::arg("layer"), nb::arg("memory"), nb::arg("to"))
        .def("set_state", &Rows::set_state, nb::arg("layer"), nb::arg("memory"), nb::arg("from"));
    nb::class_<Steps>(m, "StatelessStepper", "Steps of any rows of a packed model, whose states stand outside.")
        .def(nb::init<const PackedModel&>(), nb::arg("model"), nb::keep_alive<1, 2>())
        .def("advance", &Steps::advance, nb::arg("rows"), nb::arg("parents"), nb::arg("tensors"), nb::arg("before"),
             nb::arg("after"), nb::arg("threads"),
             "One step; tensors are addresses by name, states those of h and c (or 0) of each layer.");
}

}  // namespace throughtime
