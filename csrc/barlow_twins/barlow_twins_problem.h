#pragma once
// What the two routes of Barlow Twins on the CPU share.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "barlow_twins_tiles.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {

template <typename T>
BarlowTwinsKernels<T> barlow_twins_kernels() {
  return SSLFAST_CHOOSE(barlow_twins_kernels<T>);
}

// Half precision is computed in float32; gradients go back through `in_dtype_of`.
inline Tensor computed(const Tensor& z) {
  const ScalarType dtype = z.scalar_type();
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  return torch::stable::contiguous(half ? torch::stable::to(z, ScalarType::Float) : z);
}

inline Tensor in_dtype_of(const Tensor& z, const Tensor& gradient) {
  return z.scalar_type() == gradient.scalar_type() ? gradient : torch::stable::to(gradient, z.scalar_type());
}

inline void check_views(const char* op, const Tensor& z0, const Tensor& z1) {
  check_matrix(op, "z0", z0);
  check_like(op, "z1", z1, z0, 2);
  STD_TORCH_CHECK(z0.size(0) > 0 && z0.size(1) > 0, op, ": z0 must not be empty");
}

// `statistics` (2, 3, D): per view and column what is subtracted, twice, and what is multiplied by.
template <typename T>
BarlowTwinsView<T> view_of(const Tensor& z, const Tensor& statistics, int64_t which) {
  const int64_t columns = z.size(1);
  T* from = const_cast<T*>(statistics.const_data_ptr<T>()) + which * 3 * columns;
  return {z.const_data_ptr<T>(), z.size(0), columns, from, from + columns, from + 2 * columns};
}

inline void check_statistics(const char* op, const Tensor& statistics, const Tensor& z) {
  STD_TORCH_CHECK(statistics.scalar_type() == z.scalar_type() && statistics.dim() == 3 && statistics.size(0) == 2 &&
                      statistics.size(1) == 3 && statistics.size(2) == z.size(1),
                  op, ": statistics must be (2, 3, D) in the dtype of the rows");
}

// Panels of columns that one task takes from the views: as many as its share of the second cache holds.
template <typename T>
int64_t panels_taken(const BarlowTwinsKernels<T>& kernel, int64_t count) {
  return std::clamp<int64_t>((int64_t{1} << 17) / static_cast<int64_t>(sizeof(T)) / (count * kernel.panel), 1,
                             kernel.strip);
}

// Runs task(worker, index) for every index; workers are numbered from 0, so that each can have memory of its own.
// `entries`: how many numbers the tasks go through; below some thousands, waking another thread costs more.
inline int64_t workers_for(int64_t tasks, int64_t entries) {
  const int64_t useful = std::min<int64_t>(tasks, divided_up(entries, 1 << 14));
  return std::clamp<int64_t>(useful, 1, torch::stable::get_num_threads());
}
template <typename Task>
void run_tasks(int64_t tasks, int64_t workers, const Task& task) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t index = worker * tasks / workers; index < (worker + 1) * tasks / workers; ++index) {
        task(worker, index);
      }
    }
  });
}

}  // namespace sslfast
