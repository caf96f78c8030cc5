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
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 19) / count / 256, 1, 16) * 256;
  // Chunks of equal size.
  return std::min(rounded_up(columns, 32), rounded_up(divided_up(columns, divided_up(columns, most)), 256));
}

template <typename T>
void fill_chunk(const BarlowTwinsKernels<T>& kernel, const BarlowTwinsView<T> (&views)[2], const Chunk<T>& chunk,
                int64_t first, int64_t used, double eps, T* diagonal) {
  const int64_t count = views[0].count, panel = kernel.panel;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 14) / (count * panel));
  torch::stable::parallel_for(0, divided_up(used, panel), grain, [&](int64_t begin, int64_t end) {
    std::vector<double> products(panel);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t column = index * panel;
      const int64_t depth = std::min(panel, used - column);
      for (int which = 0; which < 2; ++which) {
        T* rows = chunk.rows[which] + column;
        kernel.statistics(views[which], first + column, eps);
        kernel.normalise(views[which], 0, count, first + column, rows, chunk.row);
        for (int64_t row = count; row < count + kernel.group; ++row) std::fill_n(rows + row * chunk.row, panel, T(0));
        for (int64_t row = 0; row < count; row += panel) {
          kernel.transpose(rows + row * chunk.row, chunk.row, std::min(panel, count - row), depth,
                           chunk.panels[which] + row * chunk.columns + column * panel);
        }
      }
      kernel.column_products(chunk.rows[0] + column, chunk.rows[1] + column, chunk.row, count, products.data());
      for (int64_t k = 0; k < depth; ++k) diagonal[first + column + k] = static_cast<T>(products[k] / count);
    }
  });
}

// Groups of rows of a Gram matrix's panel that are computed: all, or down to the diagonal.
int64_t groups_of(int64_t panel_end, int64_t group, int64_t groups, bool symmetric) {
  return symmetric ? std::min(groups, divided_up(panel_end, group)) : groups;
}

// Adds a chunk's share to both Gram matrices. Tiles are dealt out by number: a triangle's panels differ in length.
template <typename T>
void add_grams(const BarlowTwinsKernels<T>& kernel, const Chunk<T>& chunk, int64_t depth, int64_t count, int64_t first,
               int64_t groups, bool symmetric, bool accumulate, T* const (&grams)[2]) {
  const int64_t panel = kernel.panel, group = kernel.group;
  const int64_t panels = divided_up(count, panel);
  int64_t tiles = 0;
  for (int64_t p = 0; p < panels; ++p) tiles += groups_of((p + 1) * panel, group, groups, symmetric);
  torch::stable::parallel_for(0, 2 * tiles, 8, [&](int64_t begin, int64_t end) {
    int64_t tile = 0;
    for (int64_t index = 0; index < 2 * panels; ++index) {
      const int64_t p = index % panels, which = index / panels;
      const int64_t here = groups_of((p + 1) * panel, group, groups, symmetric);
      const int64_t from = std::max(begin, tile) - tile, to = std::min(end, tile + here) - tile;
      tile += here;
      if (from >= to) continue;
      const T* a = chunk.rows[which] + (first + from * group) * chunk.row;
      kernel.multiply({a, group * chunk.row, chunk.row, 1, to - from, chunk.panels[which] + p * panel * chunk.columns,
                       0, 1, depth, grams[which] + from * group * panels * panel + p * panel, panels * panel, 0,
                       accumulate});
    }
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
  const int64_t gram_entries = groups * kernel.group * width;
  Tensor scratch = torch::stable::new_empty(z0, {2 * (row_entries + panel_entries + gram_entries)});
  T* memory = scratch.mutable_data_ptr<T>();
  T* sums[2];
  for (int which = 0; which < 2; ++which) {
    chunk.rows[which] = memory + which * row_entries;
    chunk.panels[which] = memory + 2 * row_entries + which * panel_entries;
    sums[which] = memory + 2 * (row_entries + panel_entries) + which * gram_entries;
  }
  for (int64_t column = 0; column < columns; column += chunk.columns) {
    const int64_t used = std::min(chunk.columns, columns - column);
    fill_chunk(kernel, views, chunk, column, used, eps, diagonal.mutable_data_ptr<T>());
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
        store_gram(kernel, sums[which], width, row, here, count, symmetric, block.data(), kept + which * rows * count);
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
  const int64_t workers = workers_for(panels);
  const int64_t gram_row = rounded_up(count, row_gap) + row_gap;
  const int64_t strip_entries = 2 * (count + padded) * panel;
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
  run_tasks(panels, workers, [&](int64_t worker, int64_t index) {
    const int64_t column = index * panel;
    T* normalised[2] = {strips + worker * strip_entries, strips + worker * strip_entries + count * panel};
    T* pull[2] = {normalised[1] + count * panel, normalised[1] + (count + padded) * panel};
    for (int which = 0; which < 2; ++which) {
      kernel.normalise(views[which], 0, count, column, normalised[which], panel);
    }
    for (int which = 0; which < 2; ++which) {
      kernel.multiply({matrices + (1 - which) * padded * gram_row, kernel.group * gram_row, gram_row, 1,
                       padded / kernel.group, normalised[which], 0, 1, count, pull[which], panel, 0, false});
      kernel.finish_strip({normalised[which], normalised[1 - which], pull[which], count, first, rows, weight + column,
                           views[which].inverse + column, gram_scale, outer, along_data + which * columns + column,
                           gradient_data[which] + column, columns, std::min(panel, columns - column)});
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
