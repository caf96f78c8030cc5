// Barlow Twins by way of the D x D correlation matrix, for N >= D. It is the only D x D array: the backward pass turns
// its columns (for z1) and its rows (for z0) into factors a few at a time.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "barlow_twins_problem.h"

namespace sslfast {
namespace {

// Keeps rows of a buffer from falling into the same few sets of the caches.
constexpr int64_t row_gap = 16;
// Rows of the views that one worker packs at a time.
constexpr int64_t packed_rows = 2048;
// Groups of rows whose gradients one worker holds at a time.
constexpr int64_t held_groups = 16;
// Columns are packed into groups in strips of so many panels: a whole number of groups with every capability.
constexpr int64_t strip_panels = 3;

// Panels that one task computes: up to 4, so that what is read of the other matrix is used often enough.
int64_t panels_per_task(int64_t panels) {
  return std::clamp<int64_t>(panels / (4 * torch::stable::get_num_threads()), 1, 4);
}

template <typename T>
void find_statistics(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T>& view, double eps, const Tensor& z) {
  const int64_t panels = divided_up(view.columns, kernel.panel), width = panels_taken(kernel, view.count);
  const int64_t tasks = divided_up(panels, width), workers = workers_for(tasks, view.count * view.columns);
  const int64_t taken_entries = width * view.count * kernel.panel;
  Tensor scratch = torch::stable::new_empty(z, {workers * taken_entries});
  T* taken = scratch.mutable_data_ptr<T>();
  run_tasks(tasks, workers, [&](int64_t worker, int64_t index) {
    kernel.statistics(view, index * width * kernel.panel, std::min(width, panels - index * width), eps,
                      taken + worker * taken_entries);
  });
}

// The normalised columns in groups, (count / step, groups, step, group): what one step of a product reads of several
// groups stands together, and falls into different sets of the caches.
template <typename T>
void pack_groups(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T>& view, T* packed) {
  const int64_t width = strip_panels * kernel.panel, group = kernel.group;
  const int64_t groups = rounded_up(view.columns, width) / group;
  constexpr int64_t step = 32;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 14) / (view.count * width));
  torch::stable::parallel_for(0, divided_up(view.columns, width), grain, [&](int64_t begin, int64_t end) {
    std::vector<T> block(step * width);
    for (int64_t strip = begin; strip < end; ++strip) {
      for (int64_t row = 0; row < view.count; row += step) {
        const int64_t rows = std::min(step, view.count - row);
        kernel.normalise(view, row, rows, strip * width, strip_panels, block.data(), width, kernel.panel);
        for (int64_t g = 0; g < width / group; ++g) {
          T* to =
              packed +
              ((row / kernel.step * groups + strip * (width / group) + g) * kernel.step + row % kernel.step) * group;
          for (int64_t k = 0; k < rows; ++k) std::copy_n(block.data() + k * width + g * group, group, to + k * group);
        }
      }
    }
  });
}

// C = A^T B / total of two views whose statistics are known; returns the loss of C.
template <typename T>
double correlate(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T>& a, const BarlowTwinsView<T>& b,
                 int64_t total, double lambda, Tensor& correlation) {
  const int64_t count = a.count, columns = a.columns, panel = kernel.panel, group = kernel.group;
  const int64_t packed_groups = rounded_up(columns, strip_panels * panel) / group;
  const int64_t packed_step = packed_groups * kernel.step * group;
  const int64_t packed_entries = divided_up(count, kernel.step) * packed_step;
  const int64_t groups = divided_up(columns, group);
  const int64_t panels = divided_up(columns, panel), width = panels_per_task(panels);
  const int64_t tasks = divided_up(panels, width), workers = workers_for(tasks, count * columns);
  const int64_t held = std::min(count, packed_rows), sum_entries = groups * group * panel;
  const int64_t worker_entries = width * (held * panel + sum_entries);
  Tensor scratch = torch::stable::new_empty(correlation, {packed_entries + workers * worker_entries});
  T* packed = scratch.mutable_data_ptr<T>();
  T* memory = packed + packed_entries;
  T* c = correlation.mutable_data_ptr<T>();
  std::vector<double> terms(2 * panels);  // of each panel: what a task is depends on the number of threads
  pack_groups(kernel, a, packed);
  run_tasks(tasks, workers, [&](int64_t worker, int64_t index) {
    const int64_t first = index * width, used = std::min(width, panels - first);
    T* rows = memory + worker * worker_entries;
    T* sums = rows + width * held * panel;
    for (int64_t row = 0; row < count; row += held) {
      const int64_t here = std::min(held, count - row);
      kernel.normalise(b, row, here, first * panel, used, rows, panel, held * panel);
      kernel.multiply({.a = packed + row / kernel.step * packed_step,
                       .a_group = kernel.step * group,
                       .a_row = 1,
                       .a_depth = group,
                       .a_step = packed_step,
                       .groups = groups,
                       .b = rows,
                       .b_panel = held * panel,
                       .panels = used,
                       .depth = here,
                       .c = sums,
                       .c_row = panel,
                       .c_panel = sum_entries,
                       .accumulate = row > 0});
    }
    for (int64_t p = 0; p < used; ++p) {
      kernel.store_correlation(sums + p * sum_entries, columns, (first + p) * panel, columns,
                               static_cast<T>(1.0 / static_cast<double>(total)), c, terms.data() + 2 * (first + p));
    }
  });
  double loss = 0;
  for (int64_t p = 0; p < panels; ++p) loss += lambda * terms[2 * p] + terms[2 * p + 1];
  return loss;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, double lambda, double eps) {
  const BarlowTwinsKernels<T> kernel = barlow_twins_kernels<T>();
  const int64_t columns = z0.size(1);
  Tensor loss = torch::stable::new_empty(z0, {});
  Tensor statistics = torch::stable::new_empty(z0, {2, 3, columns});
  Tensor correlation = torch::stable::new_empty(z0, {columns, columns});
  const BarlowTwinsView<T> a = view_of<T>(z0, statistics, 0), b = view_of<T>(z1, statistics, 1);
  find_statistics(kernel, a, eps, z0);
  find_statistics(kernel, b, eps, z1);
  *loss.mutable_data_ptr<T>() = static_cast<T>(correlate(kernel, a, b, z0.size(0), lambda, correlation));
  return {loss, statistics, correlation};
}

template <typename T>
Tensor correlation_of(const Tensor& z0, const Tensor& z1, const Tensor& statistics, int64_t total) {
  Tensor correlation = torch::stable::new_empty(z0, {z0.size(1), z0.size(1)});
  correlate(barlow_twins_kernels<T>(), view_of<T>(z0, statistics, 0), view_of<T>(z1, statistics, 1), total, 0,
            correlation);
  return correlation;
}

// Columns (or, transposed, rows) of C from `first`, as a panel.
template <typename T>
void load_panel(const BarlowTwinsKernels<T>& kernel, const T* c, int64_t columns, int64_t first, bool transposed,
                T* to) {
  const int64_t used = std::min(kernel.panel, columns - first);
  if (transposed) return kernel.transpose(c + first * columns, columns, used, columns, to);
  for (int64_t row = 0; row < columns; ++row) {
    T* end = std::copy_n(c + row * columns + first, used, to + row * kernel.panel);
    std::fill_n(end, kernel.panel - used, T(0));
  }
}

// The gradient of `own`: `other` times the weighed rows (for z0) or columns (for z1) of C, and the normalisation's
// share.
template <typename T>
void pull_back(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T>& own, const BarlowTwinsView<T>& other,
               const Tensor& correlation, bool transposed, int64_t total, double lambda, T grad, T* gradient) {
  const int64_t count = own.count, columns = own.columns, panel = kernel.panel, group = kernel.group;
  const int64_t panels = divided_up(columns, panel), width = panels_per_task(panels);
  const int64_t tasks = divided_up(panels, width), workers = workers_for(tasks, count * columns);
  const int64_t row_size = panels * panel + row_gap, padded = rounded_up(count, group);
  const int64_t pull_entries = held_groups * group * panel, panel_entries = columns * panel;
  const int64_t worker_entries = width * (panel_entries + pull_entries + panel);
  Tensor scratch = torch::stable::new_empty(correlation, {padded * row_size + workers * worker_entries});
  T* normalised = scratch.mutable_data_ptr<T>();
  T* memory = normalised + padded * row_size;
  const T* c = correlation.const_data_ptr<T>();
  constexpr int64_t step = 32;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / (step * row_size));
  torch::stable::parallel_for(0, divided_up(padded, step), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * step; row < std::min(end * step, padded); row += step) {
      const int64_t rows = std::max<int64_t>(0, std::min(step, count - row));
      kernel.normalise(other, row, rows, 0, panels, normalised + row * row_size, row_size, panel);
      const int64_t padding = std::min(row + step, padded) - row - rows;
      std::fill_n(normalised + (row + rows) * row_size, padding * row_size, T(0));
    }
  });
  run_tasks(tasks, workers, [&](int64_t worker, int64_t index) {
    const int64_t first = index * width, used = std::min(width, panels - first);
    T* weighed = memory + worker * worker_entries;
    T* pull = weighed + width * panel_entries;
    T* along = pull + width * pull_entries;
    for (int64_t p = 0; p < used; ++p) {
      load_panel(kernel, c, columns, (first + p) * panel, transposed, weighed + p * panel_entries);
      kernel.weigh(weighed + p * panel_entries, columns, (first + p) * panel, static_cast<T>(2 * lambda),
                   static_cast<T>(1.0 / static_cast<double>(total)), along + p * panel);
    }
    for (int64_t g = 0; g < padded / group; g += held_groups) {
      const int64_t groups = std::min(held_groups, padded / group - g);
      kernel.multiply({.a = normalised + g * group * row_size,
                       .a_group = group * row_size,
                       .a_row = row_size,
                       .a_depth = 1,
                       .a_step = kernel.step,
                       .groups = groups,
                       .b = weighed,
                       .b_panel = panel_entries,
                       .panels = used,
                       .depth = columns,
                       .c = pull,
                       .c_row = panel,
                       .c_panel = pull_entries,
                       .accumulate = false});
      for (int64_t p = 0; p < used; ++p) {
        kernel.finish_rows(own, g * group, std::min(groups * group, count - g * group), (first + p) * panel,
                           pull + p * pull_entries, along + p * panel, grad, gradient);
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& z0, const Tensor& z1, const Tensor& statistics,
                                    const Tensor& correlation, int64_t total, double lambda) {
  const BarlowTwinsKernels<T> kernel = barlow_twins_kernels<T>();
  const BarlowTwinsView<T> a = view_of<T>(z0, statistics, 0), b = view_of<T>(z1, statistics, 1);
  Tensor gradient0 = torch::stable::new_empty(z0, {a.count, a.columns});
  Tensor gradient1 = torch::stable::new_empty(z0, {a.count, a.columns});
  const T outer = *grad.const_data_ptr<T>();
  pull_back(kernel, a, b, correlation, true, total, lambda, outer, gradient0.mutable_data_ptr<T>());
  pull_back(kernel, b, a, correlation, false, total, lambda, outer, gradient1.mutable_data_ptr<T>());
  return {gradient0, gradient1};
}

std::tuple<Tensor, Tensor, Tensor> direct_fwd_cpu(const Tensor& z0, const Tensor& z1, double lambda, double eps) {
  const Tensor left = computed(z0), right = computed(z1);
  check_views("barlow_twins_direct_fwd", left, right);
  return left.scalar_type() == ScalarType::Float ? forward<float>(left, right, lambda, eps)
                                                 : forward<double>(left, right, lambda, eps);
}

Tensor correlation_cpu(const Tensor& z0, const Tensor& z1, const Tensor& statistics, int64_t total) {
  const char* op = "barlow_twins_correlation";
  const Tensor left = computed(z0), right = computed(z1);
  check_views(op, left, right);
  check_statistics(op, statistics, left);
  STD_TORCH_CHECK(total > 0, op, ": total must be positive, got ", total);
  const Tensor known = torch::stable::contiguous(statistics);
  return left.scalar_type() == ScalarType::Float ? correlation_of<float>(left, right, known, total)
                                                 : correlation_of<double>(left, right, known, total);
}

std::tuple<Tensor, Tensor> direct_bwd_cpu(const Tensor& grad, const Tensor& z0, const Tensor& z1,
                                          const Tensor& statistics, const Tensor& correlation, int64_t total,
                                          double lambda, double) {
  const char* op = "barlow_twins_direct_bwd";
  const Tensor left = computed(z0), right = computed(z1);
  check_views(op, left, right);
  check_like(op, "grad", grad, left, 0);
  check_statistics(op, statistics, left);
  STD_TORCH_CHECK(total > 0, op, ": total must be positive, got ", total);
  STD_TORCH_CHECK(correlation.scalar_type() == left.scalar_type() && correlation.dim() == 2 &&
                      correlation.size(0) == left.size(1) && correlation.size(1) == left.size(1),
                  op, ": correlation must be (D, D) in the dtype of the rows");
  const auto run = left.scalar_type() == ScalarType::Float ? &backward<float> : &backward<double>;
  auto [gradient0, gradient1] = run(grad, left, right, torch::stable::contiguous(statistics),
                                    torch::stable::contiguous(correlation), total, lambda);
  return {in_dtype_of(z0, gradient0), in_dtype_of(z1, gradient1)};
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("barlow_twins_direct_fwd", TORCH_BOX(&sslfast::direct_fwd_cpu));
  m.impl("barlow_twins_direct_bwd", TORCH_BOX(&sslfast::direct_bwd_cpu));
  m.impl("barlow_twins_correlation", TORCH_BOX(&sslfast::correlation_cpu));
}
