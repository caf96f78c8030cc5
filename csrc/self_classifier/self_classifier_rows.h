#pragma once
// What self_classifier_cpu.cpp asks of one capability's kernels (self_classifier_rows.cpp).
#include <cstdint>

namespace sslfast {

// Arrays over classes are padded to `width`; those with an index for the view stand view after view. Every sum over
// rows is built from partial sums over `chunk_rows` rows, so that it does not depend on the number of threads.
template <typename T>
struct SelfClassifierProblem {
  const T* const* logits;  // V pointers to the first row of a view
  const int64_t* strides;  // V distances between the rows of a view
  int64_t views;           // V
  int64_t globals;         // how many of them are global
  int64_t rows;            // B
  int64_t classes;         // K
  int64_t width;           // K, rounded up to whole vectors
  T row_factor;            // log2(e) / row_temperature
  T column_factor;         // log2(e) / column_temperature
  T eps;
  // Per row, V x B.
  const T* row_maximum;
  const T* row_inverse;  // 1 / sum_k exp((x - maximum) / row_temperature)
  // Per column, V x width.
  const T* column_maximum;
  const T* column_inverse;    // 1 / sum_b exp((x - maximum) / column_temperature)
  const T* prediction_scale;  // batch / classes / max(mass, eps)
  // Backward only: sums over all rows, V x width, and terms of each row, V x B.
  const T* column_along;      // sum_b T (A - along)
  const T* prediction_along;  // sum_b S p / (p + eps) / max(mass, eps), 0 where the mass is below eps
  const T* target_inverse;    // 1 / max(sum_k t, eps)
  const T* target_along;      // sum_k T A, 0 where sum_k t is below eps
  const T* pull;              // sum_k S p / (p + eps)
  T target_scale;             // -weight / column_temperature
  T prediction_gradient;      // -weight / row_temperature
};

template <typename T>
struct SelfClassifierKernels {
  int64_t lanes;
  int64_t block;  // rows that one step takes
  // Numbers of scratch memory, for `views` views of `width` padded classes.
  int64_t (*columns_scratch)(int64_t width);
  int64_t (*forward_scratch)(int64_t views, int64_t width);
  // One view's rows [first, last): maximum and inverse per row, and into `partial` (3 x width) the columns' maximum,
  // sum and mass over these rows.
  void (*columns)(const SelfClassifierProblem<T>&, int64_t view, int64_t first, int64_t last, T* scratch,
                  T* row_maximum, T* row_inverse, T* partial);
  // `count` such partial results (`stride` apart) into one.
  void (*join_columns)(const T* partial, int64_t count, int64_t stride, int64_t width, T column_factor, T* result);
  // All views' rows [first, last): the three terms per row (V x B each), into `partial` (2 x V x width) the sums over
  // these rows; returns the sum of S log(p + eps).
  double (*forward)(const SelfClassifierProblem<T>&, int64_t first, int64_t last, T* scratch, T* target_inverse,
                    T* target_along, T* pull, T* partial);
  // `count` partial sums (`stride` apart, `size` numbers) into one.
  void (*join_sums)(const T* partial, int64_t count, int64_t stride, int64_t size, T* result);
  // All views' rows [first, last) of the gradient (V x B x K).
  void (*backward)(const SelfClassifierProblem<T>&, int64_t first, int64_t last, T* scratch, T* gradient);
};

namespace portable {
template <typename T>
SelfClassifierKernels<T> self_classifier_kernels();
}
namespace avx2 {
template <typename T>
SelfClassifierKernels<T> self_classifier_kernels();
}
namespace avx512 {
template <typename T>
SelfClassifierKernels<T> self_classifier_kernels();
}

}  // namespace sslfast
