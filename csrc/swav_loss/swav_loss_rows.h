#pragma once
// What swav_loss_cpu.cpp asks of one capability's kernels (swav_loss_rows.cpp).
#include <cstdint>

namespace sslfast {

template <typename T>
struct SwavProblem {
  const T* const* views;  // `high` high-resolution views, then the low-resolution ones; (rows, columns) each
  int64_t high;
  int64_t count;  // of all views
  int64_t rows;
  int64_t columns;
  T temperature;
  T code_scale;        // log2(e) / epsilon
  T view_scale;        // log2(e) / temperature
  const T* potential;  // (high, width), in base 2: what the codes' exponents are reduced by
  int64_t width;
  bool normalised;  // codes are divided by their row's sum
  bool streamed;    // gradients will not stay in the caches
};

template <typename T>
struct SwavKernels {
  // Numbers of memory that a task needs, for `high` views with codes and `count` views.
  int64_t (*scratch)(int64_t high, int64_t count);
  // Of one row: what backward has to know of every view's log-sum-exp to lse[view * rows + row], the log-sum-exp of
  // every code's exponents to code_lse, and the sum over all pairs of the cross entropy.
  double (*forward)(const SwavProblem<T>&, int64_t row, T* scratch, T* lse, T* code_lse);
  // Of one row: `factor` times the gradient of that sum, times the temperature; gradient is (views, rows, columns).
  void (*backward)(const SwavProblem<T>&, int64_t row, const T* lse, const T* code_lse, T factor, T* scratch,
                   T* gradient);
};

namespace portable {
template <typename T>
SwavKernels<T> swav_kernels();
}
namespace avx2 {
template <typename T>
SwavKernels<T> swav_kernels();
}
namespace avx512 {
template <typename T>
SwavKernels<T> swav_kernels();
}

}  // namespace sslfast
