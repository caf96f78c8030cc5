#pragma once
// Rows into panels of columns, for sources that are compiled once per capability.
#include <cstdint>

#include "sslfast/multiply.h"
#include "sslfast/transpose.h"

namespace sslfast {
namespace {

template <typename T>
void transpose(const T* from, int64_t from_row, int64_t rows, int64_t depth, T* to) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int panel = panel_columns<T>;
  for (int64_t r = 0; r < panel; r += lanes) {
    int64_t k = 0;
    for (; r + lanes <= rows && k + lanes <= depth; k += lanes) {
      V block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = load(from + (r + i) * from_row + k);
      transpose_block<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(to + (k + i) * panel + r, block[i]);
    }
    for (; k < depth; ++k) {
      for (int64_t i = r; i < r + lanes; ++i) to[k * panel + i] = i < rows ? from[i * from_row + k] : T(0);
    }
  }
}

}  // namespace
}  // namespace sslfast
