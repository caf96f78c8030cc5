#pragma once
// What the two halves of the head bank share: head_bank_cpu.cpp, which lays out memory and hands heads to threads, and
// head_bank_heads.cpp, which trains one head and is compiled once per capability.
//
// Three layouts. A matrix "in panels": its columns in groups of head_panel (the last group narrower), each group stored
// row by row. "Cells" are what one product reads at a time: a number, or, where products are bfloat16, two numbers in
// 32 bits that stand next to each other along the sum. Every width is rounded up to head_columns; what is added there
// is zero and stays zero.
#include <cstdint>

namespace sslfast {

constexpr int64_t head_panel = 64;
constexpr int64_t head_columns = 16;

enum class Optimizer : int64_t { sgd, adam, adamw, lars };

template <typename T>
struct HeadUpdate {
  Optimizer optimizer;
  T momentum;  // of SGD and LARS, Nesterov's; the decay of Adam's first moment
  T second_decay;
  T rest_of_momentum, rest_of_second;  // what is left of one, from float64: 1 - 0.999 in float32 is off by 1e-5
  T epsilon;
  T weight_decay;
  T trust;  // LARS's coefficient
  T rate;
  T adam_rate;     // the rate over 1 - decay^step of the first moment
  T adam_root;     // one over the root of that of the second
  T adamw_shrink;  // 1 - rate weight_decay
};

template <typename T>
struct HeadLayer {
  int64_t inputs, outputs;             // rounded up
  T *weight, *first, *second;          // (inputs, outputs) in panels; second only with Adam
  T *bias, *bias_first, *bias_second;  // (outputs)
  T* forward_weight;                   // cells along inputs, in panels: the weight itself, or pairs
  T* backward_weight;                  // cells along outputs: the weight itself, or bfloat16
  T* activation;                       // (batch, outputs), after ReLU and dropout
  T *hidden, *hidden_columns;          // its cells (batch, outputs) and (outputs, batch)
  T *error, *error_columns;            // cells of the output's gradient, in panels along batch; (outputs, batch)
  T* gradient;                         // (outputs, batch): the gradient before it is made into cells
  T* bias_gradient;                    // (outputs)
};

template <typename T>
struct Head {
  HeadLayer<T>* layers;
  int64_t depth;    // number of layers, the last one with the classes as outputs
  int64_t classes;  // not rounded
  int64_t dropped;  // of 65536 activations
  uint64_t key;     // of the dropout
  HeadUpdate<T> update;
};

// Rows of a step: cells (used, inputs) and (inputs, stride); rows from `count` to `used`, its rounded-up value, are 0.
template <typename T>
struct Minibatch {
  const T* rows;
  const T* columns;
  const int64_t* labels;
  int64_t count, used, stride;
};

template <typename T>
struct HeadKernels {
  bool half;  // products are bfloat16
  // Rows of features (count, width), rounded up to inputs, into a minibatch's cells. `scratch` holds (used, inputs) and
  // (head_columns, used).
  void (*prepare)(const T* const* rows, int64_t count, int64_t width, int64_t inputs, int64_t used, int64_t stride,
                  T* scratch, T* cells, T* column_cells);
  void (*refresh)(const HeadLayer<T>& layer, bool backward);                      // the weight's cells from the weight
  double (*step)(const Head<T>& head, const Minibatch<T>& batch, uint64_t step);  // returns the mean cross-entropy
  // Logits (used, outputs of the last layer) of rows, without dropout, in the last layer's activation.
  void (*forward)(const Head<T>& head, const Minibatch<T>& batch);
};

#define SSLFAST_DECLARE(capability) \
  namespace capability {            \
  template <typename T>             \
  HeadKernels<T> head_kernels();    \
  }
SSLFAST_DECLARE(portable)
SSLFAST_DECLARE(avx2)
SSLFAST_DECLARE(avx512)
#undef SSLFAST_DECLARE
namespace avx512_bf16 {
HeadKernels<float> half_head_kernels();
}

}  // namespace sslfast
