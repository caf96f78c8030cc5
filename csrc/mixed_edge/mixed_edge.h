#pragma once
// What mixed_edge_cpu.cpp asks of one capability's kernels (mixed_edge_planes.cpp).
//
// Images lie side by side: a number of every image of a group is one piece of 64 bytes, whatever the vectors, so that a
// plane (one channel of a group) is rows x columns pieces. Every size, stride and type then runs at full width, without
// a shift and without a border case. The last group's missing images hold anything; sums leave them out.
#include <cstdint>

namespace sslfast {

template <typename T>
constexpr int64_t edge_lanes = 64 / static_cast<int64_t>(sizeof(T));

// Taps: entry (y, x) of one plane belongs to entries (stride y + i, stride x + j) of the other. Distances in numbers.
template <typename T>
struct EdgeWindow {
  const T* taps;  // of entry (0, 0), the first tap
  int64_t tap_row, tap_column;
  T* plane;
  int64_t row, column;
  int64_t rows, columns;
};

// out_j = bias_j + sum_n coefficients[n, j] in_n + sum_m own_coefficients[m, j] own[m, j]
template <typename T>
struct EdgeMixture {
  const T* const* in;  // planes without a frame
  int64_t count;
  const T* coefficients;
  const T* const* own;
  int64_t owns;
  const T* own_coefficients;
  const T* bias;
  T* const* out;
  int64_t outputs, rows, columns;
  int64_t out_columns;  // pieces from row to row
  bool positive_part;
};

// sums[l, r] = sum left_l (right_r - centre_r) and left_sums[l] = sum left_l, where symmetric is not set; else
// right = left, (left_l - centre_l) (left_r - centre_r) and left_l - centre_l.
template <typename T>
struct EdgeProducts {
  const T* const* left;
  int64_t lefts;
  const T* const* right;
  int64_t rights;
  const T* centre;
  bool symmetric;
  int64_t positions, images;
  T* scratch;  // (lefts * rights + lefts) pieces
  double* sums;
  double* left_sums;
};

// Pools of 3 x 3, padding 1; an average is taken of what lies inside.
template <typename T>
struct EdgePools {
  const T* x;
  int64_t rows, columns, stride;
  T* scratch;  // 2 columns pieces
  T* largest;  // or null; likewise
  T* average;
};

// gx += what A g + B + C pooled of either pool amounts to.
template <typename T>
struct EdgePoolsBackward {
  const T* x;
  const T* grad;
  int64_t rows, columns, stride;
  T* scratch;  // collected_pieces
  const T* largest;
  T largest_factors[3];
  const T* average;
  T average_factors[3];
  T* gx;
};

template <typename T>
struct EdgeKernels {
  // `positions` numbers of `images` images, which are `image` numbers apart, to pieces, and back.
  void (*to_lanes)(const T* from, int64_t image, int64_t images, int64_t positions, T* to);
  void (*from_lanes)(const T* from, int64_t image, int64_t images, int64_t positions, T* to);
  // Where not > 0, zero; rows of `to` are to_columns pieces apart.
  void (*positive_part)(const T* from, int64_t rows, int64_t columns, T* to, int64_t to_columns);
  // plane = or += correlation of the taps with height x width weights. Known are 1 to 3 squared and 5 x 5.
  void (*correlate)(int64_t height, int64_t width, int64_t stride, const EdgeWindow<T>& window, const T* weights,
                    bool add);
  // sums[i, j] (pieces) += sum over the plane of plane times tap (i, j).
  void (*weigh)(int64_t size, int64_t stride, const EdgeWindow<T>& window, T* sums);
  void (*mix)(const EdgeMixture<T>& mixture);
  void (*products)(const EdgeProducts<T>& products);
  void (*pools)(const EdgePools<T>& pools);
  void (*pools_backward)(const EdgePoolsBackward<T>& pools);
  // Over every `step`th position.
  double (*sum)(const T* a, int64_t positions, int64_t step, int64_t images);
  // Sums of a - centre and of its square.
  void (*squares)(const T* a, T centre, int64_t positions, int64_t images, double* first, double* second);
  double (*dot)(const T* a, const T* b, T centre, int64_t positions, int64_t images);  // of a and b - centre
  // to = 0 where positive is not > 0; rows of `positive` are positive_columns pieces apart.
  void (*clear_where_not_positive)(const T* positive, int64_t positive_columns, int64_t rows, int64_t columns, T* to);
  void (*multiply)(const T* a, const T* b, int64_t positions, T* to);
  void (*add_scaled)(const T* a, T factor, int64_t positions, T* to);
  // Largest of each 2 x 2 of a plane of one image, and its gradient's way back.
  void (*halve)(const T* x, int64_t rows, int64_t columns, T* to);
  void (*halve_backward)(const T* grad, const T* x, int64_t rows, int64_t columns, T* to);
};

namespace portable {
template <typename T>
EdgeKernels<T> edge_kernels();
}
namespace avx2 {
template <typename T>
EdgeKernels<T> edge_kernels();
}
namespace avx512 {
template <typename T>
EdgeKernels<T> edge_kernels();
}

}  // namespace sslfast
