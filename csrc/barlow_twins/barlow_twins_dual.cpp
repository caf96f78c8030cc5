// Barlow Twins by way of the N x N Gram matrices, for N < D: ||A^T B||^2 = <A A^T, B B^T>, so that no D x D array is
// formed. Every sum runs over one sequence of blocks, whichever thread computes it.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "barlow_twins_problem.h"

namespace sslfast {
namespace {

// Keeps rows of a buffer from falling into the same few sets of the caches.
constexpr int64_t row_gap = 16;

// A part of the columns, normalised, in both layouts that the products read; as large as the third cache bears.
template <typename T>
struct Chunk {
  int64_t columns, row;
  T* rows[2];    // (count + group, row)
  T* panels[2];  // (count / panel, columns, panel): transposed
};

int64_t chunk_columns(int64_t count, int64_t columns) {
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 20) / count / 256, 1, 8) * 256;
  // Chunks of equal size.
  return std::min(rounded_up(columns, 32), rounded_up(divided_up(columns, divided_up(columns, most)), 256));
}

template <typename T>
void fill_chunk(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T> (&views)[2], const Chunk<T>& chunk,
                int64_t first, int64_t used, double eps, T* memory, int64_t workers, T* diagonal) {
  const int64_t count = views[0].count, panel = kernel.panel, width = panels_taken(kernel, count);
  const int64_t panels = divided_up(used, panel), taken_panel = count * panel;
  run_tasks(divided_up(panels, width), workers, [&](int64_t worker, int64_t index) {
    const int64_t here = std::min(width, panels - index * width), column = index * width * panel;
    T* taken[2];
    for (int which = 0; which < 2; ++which) {
      const BarlowTwinsView<T>& view = views[which];
      taken[which] = memory + (2 * worker + which) * width * taken_panel;
      T* rows = chunk.rows[which] + column;
      kernel.statistics(view, first + column, here, eps, taken[which]);
      kernel.normalise_taken(view, first + column, here, taken[which], rows, chunk.row, panel);
      kernel.normalise_taken(view, first + column, here, taken[which], taken[which], panel, taken_panel);
      for (int64_t row = count; row < count + kernel.group; ++row) {
        std::fill_n(rows + row * chunk.row, here * panel, T(0));
      }
      for (int64_t p = 0; p < here; ++p) {
        for (int64_t row = 0; row < count; row += panel) {
          kernel.transpose(taken[which] + p * taken_panel + row * panel, panel, std::min(panel, count - row), panel,
                           chunk.panels[which] + row * chunk.columns + (column + p * panel) * panel);
        }
      }
    }
    std::vector<double> products(panel);
    for (int64_t p = 0; p < here; ++p) {
      kernel.column_products(taken[0] + p * taken_panel, taken[1] + p * taken_panel, panel, count, products.data());
      for (int64_t k = 0; k < std::min(panel, used - column - p * panel); ++k) {
        diagonal[first + column + p * panel + k] = static_cast<T>(products[k] / count);
      }
    }
  });
}

// How many groups of rows of a Gram matrix's panel are computed: all, or those down to the diagonal.
int64_t groups_of(int64_t panel_end, int64_t group, int64_t groups, bool symmetric) {
  return symmetric ? std::min(groups, divided_up(panel_end, group)) : groups;
}

// Adds a chunk's share to both Gram matrices. What the threads divide is the number of tiles: a triangle's rows and
// columns differ in length. Tiles come in blocks of some panels by some groups, whose rows stay in the second cache.
template <typename T>
void add_grams(const BarlowTwinsKernels<T>& kernel, const Chunk<T>& chunk, int64_t depth, int64_t count, int64_t first,
               int64_t groups, bool symmetric, bool accumulate, T* const (&grams)[2]) {
  constexpr int64_t block_panels = 4, block_groups = 16;
  const int64_t panel = kernel.panel, group = kernel.group;
  const int64_t panels = divided_up(count, panel);
  const auto end_of = [=](int64_t p) { return groups_of((p + 1) * panel, group, groups, symmetric); };
  // Calls of(which, first panel, end, first group, end) for the blocks, restricted to groups whose tiles are numbered
  // from `begin` to `end`; returns the number of all tiles.
  const auto blocks = [=](int64_t begin, int64_t end, const auto& of) {
    int64_t tile = 0;
    for (int64_t which = 0; which < 2; ++which) {
      for (int64_t p = 0; p < panels; p += block_panels) {
        const int64_t p_end = std::min(panels, p + block_panels);
        for (int64_t g = 0; g < end_of(p_end - 1); g += block_groups) {
          const int64_t g_end = std::min(end_of(p_end - 1), g + block_groups);
          int64_t from = g_end, to = g;
          for (int64_t k = g; k < g_end; ++k) {
            if (begin <= tile && tile < end) {
              from = std::min(from, k);
              to = k + 1;
            }
            for (int64_t q = p; q < p_end; ++q) tile += k < end_of(q);
          }
          if (from < to) of(which, p, p_end, from, to);
        }
      }
    }
    return tile;
  };
  const int64_t tiles = blocks(0, 0, [](auto...) {});
  torch::stable::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
    blocks(begin, end, [&](int64_t which, int64_t p, int64_t p_end, int64_t from, int64_t to) {
      const int64_t row = panels * panel + row_gap;
      const T* a = chunk.rows[which] + (first + from * group) * chunk.row;
      for (int64_t k = 0; k < depth; k += kernel.step) {
        for (int64_t q = p; q < p_end; ++q) {
          const int64_t used = std::min(to, end_of(q)) - from;
          if (used <= 0) continue;
          kernel.multiply({.a = a + k,
                           .a_group = group * chunk.row,
                           .a_row = chunk.row,
                           .a_depth = 1,
                           .a_step = kernel.step,
                           .groups = used,
                           .b = chunk.panels[which] + (q * chunk.columns + k) * panel,
                           .b_panel = 0,
                           .panels = 1,
                           .depth = std::min(kernel.step, depth - k),
                           .c = grams[which] + from * group * row + q * panel,
                           .c_row = row,
                           .c_panel = 0,
                           .accumulate = accumulate || k > 0});
        }
      }
    });
  });
}

// Copies rows of a Gram matrix, and its upper triangle into its lower one where only that was computed.
template <typename T>
void store_gram(const BarlowTwinsKernels<T>& kernel, const T* gram, int64_t row_size, int64_t first, int64_t rows,
                int64_t count, bool symmetric, T* block, T* to) {
  const int64_t panel = kernel.panel;
  const int64_t begin = symmetric ? first : 0;
  for (int64_t row = first; row < first + rows; ++row) {
    std::copy_n(gram + row * row_size + begin, count - begin, to + row * count + begin);
  }
  if (!symmetric) return;
  for (int64_t column = 0; column <= first; column += panel) {
    const int64_t depth = std::min(panel, count - column);
    kernel.transpose(gram + column * row_size + first, row_size, depth, rows, block);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t below = std::min(panel, first + row - column);
      std::copy_n(block + row * panel, below, to + (first + row) * count + column);
    }
  }
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, int64_t first, int64_t rows,
                                                   double lambda, double eps) {
  const BarlowTwinsKernels<T> kernel = barlow_twins_kernels<T>();
  const int64_t count = z0.size(0), columns = z0.size(1);
  const bool symmetric = rows == count;
  Tensor loss = torch::stable::new_empty(z0, {});
  Tensor statistics = torch::stable::new_empty(z0, {2, 3, columns});
  Tensor diagonal = torch::stable::new_empty(z0, {columns});
  Tensor grams = torch::stable::new_empty(z0, {2, rows, count});
  const BarlowTwinsView<T> views[2] = {view_of<T>(z0, statistics, 0), view_of<T>(z1, statistics, 1)};

  Chunk<T> chunk;
  chunk.columns = chunk_columns(count, columns);
  chunk.row = chunk.columns + row_gap;
  const int64_t groups = divided_up(rows, kernel.group);
  const int64_t width = rounded_up(count, kernel.panel);
  const int64_t row_entries = (count + kernel.group) * chunk.row, panel_entries = width * chunk.columns;
  const int64_t gram_row = width + row_gap, gram_entries = groups * kernel.group * gram_row;
  const int64_t taken = panels_taken(kernel, count), workers = workers_for(columns, count * columns);
  const int64_t taken_entries = workers * taken * count * kernel.panel;
  Tensor scratch = torch::stable::new_empty(z0, {2 * (row_entries + panel_entries + gram_entries + taken_entries)});
  T* memory = scratch.mutable_data_ptr<T>();
  T* sums[2];
  for (int which = 0; which < 2; ++which) {
    chunk.rows[which] = memory + which * row_entries;
    chunk.panels[which] = memory + 2 * row_entries + which * panel_entries;
    sums[which] = memory + 2 * (row_entries + panel_entries) + which * gram_entries;
  }
  for (int64_t column = 0; column < columns; column += chunk.columns) {
    const int64_t used = std::min(chunk.columns, columns - column);
    fill_chunk(kernel, views, chunk, column, used, eps, memory + 2 * (row_entries + panel_entries + gram_entries),
               workers, diagonal.mutable_data_ptr<T>());
    add_grams(kernel, chunk, used, count, first, groups, symmetric, column > 0, sums);
  }

  T* kept = grams.mutable_data_ptr<T>();
  const int64_t blocks = divided_up(rows, kernel.panel);
  std::vector<double> inner(blocks);
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 14) / (count * kernel.panel));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> block(kernel.panel * kernel.panel);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index * kernel.panel, here = std::min(kernel.panel, rows - row);
      for (int which = 0; which < 2; ++which) {
        store_gram(kernel, sums[which], gram_row, row, here, count, symmetric, block.data(),
                   kept + which * rows * count);
      }
      inner[index] = 0;
      for (int64_t k = row; k < row + here; ++k) {
        inner[index] += kernel.inner(kept + k * count, kept + (rows + k) * count, count);
      }
    }
  });
  double product = 0, invariance = 0, square = 0;
  for (const double part : inner) product += part;
  const T* c = diagonal.const_data_ptr<T>();
  for (int64_t column = 0; column < columns; ++column) {
    const double value = c[column];
    invariance += (value - 1) * (value - 1);
    square += value * value;
  }
  const double share = static_cast<double>(rows) / count;
  *loss.mutable_data_ptr<T>() =
      static_cast<T>(share * (invariance - lambda * square) + lambda * (product / count / count));
  return {loss, statistics, diagonal, grams};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& z0, const Tensor& z1,
                                            const Tensor& statistics, const Tensor& diagonal, const Tensor& grams,
                                            int64_t first, double lambda) {
  const BarlowTwinsKernels<T> kernel = barlow_twins_kernels<T>();
  const int64_t count = z0.size(0), columns = z0.size(1), rows = grams.size(1);
  const int64_t panel = kernel.panel, padded = rounded_up(rows, kernel.group);
  const BarlowTwinsView<T> views[2] = {view_of<T>(z0, statistics, 0), view_of<T>(z1, statistics, 1)};
  Tensor gradients[2] = {torch::stable::new_empty(z0, {rows, columns}), torch::stable::new_empty(z0, {rows, columns})};
  Tensor along = torch::stable::new_empty(z0, {2, columns});

  const int64_t panels = divided_up(columns, panel);
  // Two panels where there are enough: rows are read and written in longer pieces, and Gram matrices less often.
  const int64_t width = panels >= 8 * torch::stable::get_num_threads() ? 2 : 1;
  const int64_t tasks = divided_up(panels, width), workers = workers_for(tasks, count * columns);
  const int64_t gram_row = rounded_up(count, row_gap) + row_gap;
  const int64_t strip_entries = width * (2 * count + padded) * panel;
  Tensor scratch = torch::stable::new_empty(z0, {2 * padded * gram_row + workers * strip_entries + columns});
  T* matrices = scratch.mutable_data_ptr<T>();
  T* strips = matrices + 2 * padded * gram_row;
  T* weight = strips + workers * strip_entries;
  const T* kept = grams.const_data_ptr<T>();
  torch::stable::parallel_for(0, 2 * padded, std::max<int64_t>(1, (int64_t{1} << 15) / gram_row),
                              [=](int64_t begin, int64_t end) {
                                for (int64_t k = begin; k < end; ++k) {
                                  const int64_t row = k % padded;
                                  const T* from = kept + (k / padded * rows + row) * count;
                                  if (row < rows) std::copy_n(from, count, matrices + k * gram_row);
                                  if (row >= rows) std::fill_n(matrices + k * gram_row, count, T(0));
                                }
                              });
  const double total = static_cast<double>(count);
  const T* c = diagonal.const_data_ptr<T>();
  for (int64_t column = 0; column < columns; ++column) {
    weight[column] = static_cast<T>((2 * (c[column] - 1.0) - 2 * lambda * c[column]) / total);
  }
  const T gram_scale = static_cast<T>(2 * lambda / total / total);
  const T outer = *grad.const_data_ptr<T>();
  T* along_data = along.mutable_data_ptr<T>();
  T* gradient_data[2] = {gradients[0].mutable_data_ptr<T>(), gradients[1].mutable_data_ptr<T>()};
  const int64_t lines = divided_up(width * panel * static_cast<int64_t>(sizeof(T)), 64);
  const int64_t view_entries = count * panel, pull_entries = padded * panel;
  run_tasks(tasks, workers, [&](int64_t worker, int64_t index) {
    const int64_t first_column = index * width * panel, here = std::min(width, panels - index * width);
    T* normalised[2] = {strips + worker * strip_entries, strips + worker * strip_entries + width * view_entries};
    T* pull = normalised[1] + width * view_entries;
    for (int which = 0; which < 2; ++which) {
      kernel.normalise(views[which], 0, count, first_column, here, normalised[which], panel, view_entries);
    }
    for (int which = 0; which < 2; ++which) {
      kernel.multiply({.a = matrices + (1 - which) * padded * gram_row,
                       .a_group = kernel.group * gram_row,
                       .a_row = gram_row,
                       .a_depth = 1,
                       .a_step = kernel.step,
                       .groups = padded / kernel.group,
                       .b = normalised[which],
                       .b_panel = view_entries,
                       .panels = here,
                       .depth = count,
                       .c = pull,
                       .c_row = panel,
                       .c_panel = pull_entries,
                       .accumulate = false,
                       .read = {views[which].rows + first_column + width * panel, columns, count, lines},
                       .write = {gradient_data[which] + first_column, columns, rows, lines}});
      for (int64_t p = 0; p < here; ++p) {
        const int64_t column = first_column + p * panel;
        kernel.finish_strip({normalised[which] + p * view_entries, normalised[1 - which] + p * view_entries,
                             pull + p * pull_entries, count, first, rows, weight + column,
                             views[which].inverse + column, gram_scale, outer, along_data + which * columns + column,
                             gradient_data[which] + column, columns, std::min(panel, columns - column)});
      }
    }
  });
  return {gradients[0], gradients[1], along};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dual_fwd_cpu(const Tensor& z0, const Tensor& z1, int64_t first, int64_t rows,
                                                        double lambda, double eps) {
  const char* op = "barlow_twins_dual_fwd";
  const Tensor left = computed(z0), right = computed(z1);
  check_views(op, left, right);
  STD_TORCH_CHECK(0 <= first && 0 < rows && first + rows <= left.size(0), op, ": rows ", first, " to ", first + rows,
                  " are not among the ", left.size(0), " rows");
  return left.scalar_type() == ScalarType::Float ? forward<float>(left, right, first, rows, lambda, eps)
                                                 : forward<double>(left, right, first, rows, lambda, eps);
}

std::tuple<Tensor, Tensor, Tensor> dual_bwd_cpu(const Tensor& grad, const Tensor& z0, const Tensor& z1,
                                                const Tensor& statistics, const Tensor& diagonal, const Tensor& grams,
                                                int64_t first, double lambda, double) {
  const char* op = "barlow_twins_dual_bwd";
  const Tensor left = computed(z0), right = computed(z1);
  check_views(op, left, right);
  check_like(op, "grad", grad, left, 0);
  check_statistics(op, statistics, left);
  STD_TORCH_CHECK(
      diagonal.scalar_type() == left.scalar_type() && diagonal.dim() == 1 && diagonal.size(0) == left.size(1), op,
      ": diagonal must be (D,) in the dtype of the rows");
  STD_TORCH_CHECK(grams.scalar_type() == left.scalar_type() && grams.dim() == 3 && grams.size(0) == 2 &&
                      grams.size(2) == left.size(0),
                  op, ": grams must be (2, rows, N) in the dtype of the rows");
  STD_TORCH_CHECK(0 <= first && first + grams.size(1) <= left.size(0), op, ": rows ", first, " to ",
                  first + grams.size(1), " are not among the ", left.size(0), " rows");
  const auto run = left.scalar_type() == ScalarType::Float ? &backward<float> : &backward<double>;
  auto [gradient0, gradient1, along] =
      run(grad, left, right, torch::stable::contiguous(statistics), torch::stable::contiguous(diagonal),
          torch::stable::contiguous(grams), first, lambda);
  return {in_dtype_of(z0, gradient0), in_dtype_of(z1, gradient1), along};
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("barlow_twins_dual_fwd", TORCH_BOX(&sslfast::dual_fwd_cpu));
  m.impl("barlow_twins_dual_bwd", TORCH_BOX(&sslfast::dual_bwd_cpu));
}
