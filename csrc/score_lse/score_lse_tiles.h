#pragma once
// What score_lse_cpu.cpp asks of one capability's kernels (score_lse_tiles.cpp).
#include <cstdint>

namespace sslfast {

template <typename T>
struct LabelOf;
template <>
struct LabelOf<float> {
  using type = int32_t;
};
template <>
struct LabelOf<double> {
  using type = int64_t;
};

// Scores s_ij = r_i . c_j / temperature of n rows and m columns; padding holds zeros.
template <typename T>
struct ScoreProblem {
  using Label = typename LabelOf<T>::type;
  int64_t row_count, column_count;
  int64_t depth;                         // D
  int64_t width;                         // D, rounded up to whole panels
  int64_t block;                         // rows that one call serves: whole groups, at most ScoreKernels::block
  const T* rows;                         // (n rounded up to blocks, width), divided by the temperature
  const T* panels;                       // (m rounded up to tiles / panel, D, panel)
  const T* columns;                      // (m rounded up to tiles, width); backward only
  const Label* row_labels = nullptr;     // (n rounded up to blocks), or null: nothing has equal labels
  const Label* column_labels = nullptr;  // (m rounded up to tiles)
  const Label* lowest_label = nullptr;   // (tiles) of the columns
  const Label* highest_label = nullptr;  // (tiles)
  int64_t diagonal;                      // row i does not meet column i + diagonal
  T inverse_temperature;
};

// What the loss has, per row or per column of the scores: gradients of both log-sum-exps, and the log-sum-exps.
template <typename T>
struct ScoreSide {
  const T* grad_all = nullptr;  // null: this side has no gradient
  const T* grad_equal = nullptr;
  const T* lse_all = nullptr;
  const T* lse_equal = nullptr;
};

template <typename T>
struct ScoreKernels {
  int64_t block;  // most rows of the score matrix that one call serves
  int64_t group;  // what the rows of a block are a multiple of
  int64_t tile;   // columns of the score matrix that one step holds
  int64_t panel;  // columns that are packed together
  // Rows [problem.block * index, ...): log-sum-exp over all columns that they meet, and over those of the same label.
  void (*forward)(const ScoreProblem<T>&, int64_t index, T* lse_all, T* lse_equal);
  // Rows [problem.block * index, ...): sum_j w_ij c_j / temperature into (block, width), w the gradient of s_ij.
  void (*backward)(const ScoreProblem<T>&, int64_t index, const ScoreSide<T>& row_side, const ScoreSide<T>& column_side,
                   T* gradient);
};

namespace portable {
template <typename T>
ScoreKernels<T> score_lse_kernels();
}
namespace avx2 {
template <typename T>
ScoreKernels<T> score_lse_kernels();
}
namespace avx512 {
template <typename T>
ScoreKernels<T> score_lse_kernels();
}

}  // namespace sslfast
