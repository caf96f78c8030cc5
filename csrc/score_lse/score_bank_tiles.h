#pragma once
// What score_bank_cpu.cpp asks of one capability's kernels (score_bank_tiles.cpp).
#include <cstdint>

namespace sslfast {

// n rows against m columns, many more, without labels: both gradients of sum_i g_i log sum_j exp(r_i . c_j /
// temperature).
template <typename T>
struct BankProblem {
  int64_t row_count, column_count;
  int64_t padded_rows;                  // n, rounded up to whole panels
  int64_t depth;                        // D
  int64_t width;                        // D, rounded up to whole panels
  int64_t height;                       // D, rounded up to whole groups
  const T* rows;                        // (padded_rows, width), zeros behind
  const T* row_panels;                  // (padded_rows / panel, D, panel), likewise
  const T* columns;                     // as they came
  int64_t column_stride, depth_stride;  // of columns
  const T* grad;                        // g, (padded_rows), zeros behind
  const T* lse;                         // likewise
  T inverse_temperature;
  T* of_columns;  // (m, D); null: no gradient of the columns is wanted
};

template <typename T>
struct BankKernels {
  int64_t tile;   // columns that one step holds
  int64_t panel;  // rows that are packed together
  int64_t group;  // what the height is a multiple of
  int64_t lanes;  // rows that one step of `finish` serves
  int64_t (*scratch)(const BankProblem<T>&);
  // Columns [tile * index, ...): writes their gradients, and adds what they give to the rows to (height, padded_rows).
  void (*backward)(const BankProblem<T>&, int64_t index, T* scratch, T* of_rows);
  // Rows [lanes * index, ...): adds up `chunks` such arrays into (n, D).
  void (*finish)(const BankProblem<T>&, int64_t index, const T* of_rows, int64_t chunks, T* gradient);
};

namespace portable {
template <typename T>
BankKernels<T> score_bank_kernels();
}
namespace avx2 {
template <typename T>
BankKernels<T> score_bank_kernels();
}
namespace avx512 {
template <typename T>
BankKernels<T> score_bank_kernels();
}

}  // namespace sslfast
