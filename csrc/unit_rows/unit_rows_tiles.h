#pragma once
// What unit_rows_cpu.cpp asks of one capability's kernels (unit_rows_tiles.cpp).
#include <cstdint>

namespace sslfast {

template <typename T>
struct UnitRowsKernels {
  // One row of `depth` numbers: divided by its length. Returns what it was multiplied by.
  T (*forward)(const T* x, int64_t depth, T* unit);
  // (grad - (grad . unit) unit) * inverse_norm
  void (*backward)(const T* grad, const T* unit, T inverse_norm, int64_t depth, T* result);
};

namespace portable {
template <typename T>
UnitRowsKernels<T> unit_rows_kernels();
}
namespace avx2 {
template <typename T>
UnitRowsKernels<T> unit_rows_kernels();
}
namespace avx512 {
template <typename T>
UnitRowsKernels<T> unit_rows_kernels();
}

}  // namespace sslfast
