#pragma once
// Copies matrices into the arrays that the tiled loops read.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace sslfast {
namespace {

using torch::stable::Tensor;

// A matrix as it came: a bank of negatives is stored by columns.
template <typename T>
struct Matrix {
  const T* data;
  int64_t count, depth, row_stride, depth_stride;

  explicit Matrix(const Tensor& tensor)
      : data(tensor.const_data_ptr<T>()),
        count(tensor.size(0)),
        depth(tensor.size(1)),
        row_stride(tensor.stride(0)),
        depth_stride(tensor.stride(1)) {}
  T at(int64_t row, int64_t d) const { return data[row * row_stride + d * depth_stride]; }
};

// Sixteen by sixteen: both the lines that are read and those that are written stay in the cache.
constexpr int64_t patch = 16;

template <typename T>
void pack_rows(const Matrix<T>& source, int64_t padded, int64_t width, T factor, T* target) {
  // Copying is quick: below this, waking other threads costs more.
  const int64_t rows_per_task = std::max<int64_t>(patch, (int64_t{1} << 16) / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, padded, rows_per_task, [=](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += patch) {
      const int64_t last = std::min(first + patch, end), used = std::min(last, source.count);
      for (int64_t start = 0; start < source.depth; start += patch) {
        const int64_t stop = std::min(start + patch, source.depth);
        if (source.depth_stride == 1) {
          for (int64_t row = first; row < used; ++row) {
            for (int64_t d = start; d < stop; ++d) target[row * width + d] = source.at(row, d) * factor;
          }
          continue;
        }
        // Along the lines that are read: with a bank of 4,096 columns, all lines of a patch share a set of the cache.
        for (int64_t d = start; d < stop; ++d) {
          for (int64_t row = first; row < used; ++row) target[row * width + d] = source.at(row, d) * factor;
        }
      }
      for (int64_t row = first; row < last; ++row) {
        const int64_t from = row < source.count ? source.depth : 0;
        std::fill_n(target + row * width + from, width - from, T(0));
      }
    }
  });
}

template <typename T>
void pack_panels(const Matrix<T>& source, int64_t panels, int64_t panel, T* target) {
  const int64_t panels_per_task = std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(1, panel * source.depth));
  torch::stable::parallel_for(0, panels, panels_per_task, [=](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      T* columns = target + index * panel * source.depth;
      const int64_t first = index * panel, used = std::clamp<int64_t>(source.count - first, 0, panel);
      if (source.row_stride == 1) {
        for (int64_t d = 0; d < source.depth; ++d) {
          T* rest = std::copy_n(source.data + first + d * source.depth_stride, used, columns + d * panel);
          std::fill_n(rest, panel - used, T(0));
        }
        continue;
      }
      for (int64_t column = 0; column < panel; ++column) {
        for (int64_t d = 0; d < source.depth; ++d) {
          columns[d * panel + column] = column < used ? source.at(first + column, d) : T(0);
        }
      }
    }
  });
}

}  // namespace
}  // namespace sslfast
