// The mixed edge's loops over planes, compiled once per capability (no std:: templates: see nt_xent_tiles.cpp).
#include "mixed_edge.h"
#include "mixed_edge_pools.h"
#include "mixed_edge_sums.h"
#include "mixed_edge_windows.h"
#include "sslfast/transpose.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

template <typename T>
void to_lanes(const T* from, int64_t image, int64_t images, int64_t positions, T* to) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int64_t L = edge_lanes<T>;
  for (int64_t first = 0; first < L; first += lanes) {
    const int64_t here = images - first < lanes ? images - first : lanes;
    int64_t p = 0;
    for (; p + lanes <= positions; p += lanes) {
      V block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = i < here ? load(from + (first + i) * image + p) : V{};
      transpose_block<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(to + (p + i) * L + first, block[i]);
    }
    for (; p < positions; ++p) {
      for (int i = 0; i < lanes; ++i) to[p * L + first + i] = i < here ? from[(first + i) * image + p] : 0;
    }
  }
}

template <typename T>
void from_lanes(const T* from, int64_t image, int64_t images, int64_t positions, T* to) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int64_t L = edge_lanes<T>;
  for (int64_t first = 0; first < images; first += lanes) {
    const int64_t here = images - first < lanes ? images - first : lanes;
    int64_t p = 0;
    for (; p + lanes <= positions; p += lanes) {
      V block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = load(from + (p + i) * L + first);
      transpose_block<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (i < here) store(to + (first + i) * image + p, block[i]);
      }
    }
    for (; p < positions; ++p) {
      for (int i = 0; i < here; ++i) to[(first + i) * image + p] = from[p * L + first + i];
    }
  }
}

// Calls step(offset of the vector in pieces without a frame, in framed ones) for every vector of a plane.
template <typename T, typename Step>
inline void each_piece(int64_t rows, int64_t columns, int64_t framed_columns, const Step& step) {
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t i = 0; i < columns * edge_lanes<T>; i += Vector<T>::lanes) {
      step(y * columns * edge_lanes<T> + i, y * framed_columns * edge_lanes<T> + i);
    }
  }
}

template <typename T>
void positive_part(const T* from, int64_t rows, int64_t columns, T* to, int64_t to_columns) {
  each_piece<T>(rows, columns, to_columns, [&](int64_t plain, int64_t framed) {
    const auto value = load(from + plain);
    store(to + framed, value < typename Vector<T>::type{} ? typename Vector<T>::type{} : value);
  });
}

template <typename T>
void clear_where_not_positive(const T* positive, int64_t positive_columns, int64_t rows, int64_t columns, T* to) {
  using V = typename Vector<T>::type;
  each_piece<T>(rows, columns, positive_columns, [&](int64_t plain, int64_t framed) {
    store(to + plain, load(positive + framed) <= V{} ? V{} : load(to + plain));
  });
}

template <typename T>
void multiply(const T* a, const T* b, int64_t positions, T* to) {
  for (int64_t i = 0; i < positions * edge_lanes<T>; i += Vector<T>::lanes) store(to + i, load(a + i) * load(b + i));
}

template <typename T>
void add_scaled(const T* a, T factor, int64_t positions, T* to) {
  const auto scale = splat(factor);
  for (int64_t i = 0; i < positions * edge_lanes<T>; i += Vector<T>::lanes) {
    store(to + i, load(to + i) + scale * load(a + i));
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
EdgeKernels<T> edge_kernels() {
  return {&to_lanes<T>,
          &from_lanes<T>,
          &positive_part<T>,
          &correlate<T>,
          &weigh<T>,
          &mix<T>,
          &products<T>,
          &pools<T>,
          &pools_backward<T>,
          &sum<T>,
          &squares<T>,
          &dot<T>,
          &clear_where_not_positive<T>,
          &multiply<T>,
          &add_scaled<T>,
          &halve<T>,
          &halve_backward<T>};
}

template EdgeKernels<float> edge_kernels<float>();
template EdgeKernels<double> edge_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
