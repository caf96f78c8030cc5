#pragma once
// What barlow_twins_cpu.cpp asks of one capability's kernels (barlow_twins_tiles.cpp).
#include <cstdint>

namespace sslfast {

// One view: its rows, and what its columns are normalised with: ((z - center) - rest) * inverse.
template <typename T>
struct BarlowTwinsView {
  const T* rows;  // (count, columns), row-major
  int64_t count;
  int64_t columns;
  T* center;   // the mean, rounded
  T* rest;     // what rounding took from it
  T* inverse;  // 1 / sqrt(variance + eps)
};

// Entries, `lines` lines of the caches in each row, that are wanted soon.
template <typename T>
struct BarlowTwinsAhead {
  const T* from;
  int64_t row, rows, lines;
};

// c = or += a b, in tiles of `group` rows by `panel` columns. Entry (row, k) of group g of a stands at
// a[g * a_group + row * a_row + (k / step) * a_step + (k % step) * a_depth], entry (k, column) of panel p of b at b[p *
// b_panel + k * panel + column], entry (row, column) of tile (g, p) of c at c[(g * group + row) * c_row + p * c_panel +
// column].
template <typename T>
struct BarlowTwinsProduct {
  const T* a;
  int64_t a_group, a_row, a_depth, a_step, groups;
  const T* b;
  int64_t b_panel, panels;
  int64_t depth;
  T* c;
  int64_t c_row, c_panel;
  bool accumulate;
  // Asked for between the tiles: to be read, and to be written.
  BarlowTwinsAhead<T> read = {nullptr, 0, 0, 0}, write = {nullptr, 0, 0, 0};
};

// One panel of columns in the dual route's backward pass.
template <typename T>
struct BarlowTwinsStrip {
  const T* own;    // (count of all rows, panel): this view, normalised
  const T* other;  // the other view, likewise
  T* pull;         // (rows, panel): Gram matrix of the other view times own; overwritten
  int64_t count, first, rows;
  const T* weight;  // per column, the other view's factor
  const T* inverse;
  T gram_scale;
  T grad;
  T* along;     // per column: sum over the rows of own times the gradient of own
  T* gradient;  // (rows, columns)
  int64_t columns, used;
};

template <typename T>
struct BarlowTwinsKernels {
  int64_t group;  // rows of a tile
  int64_t panel;  // columns of a tile
  int64_t strip;  // panels that are taken together, at most
  int64_t step;   // depth of a product whose parts of both matrices stay in the caches
  // Statistics of up to `panels` panels of columns from `first`, of which the entries are left in `taken` (panels,
  // count, panel), with zeros beyond the last column: rows of the view are far apart, and often in the same few sets of
  // the caches.
  void (*statistics)(const BarlowTwinsView<T>&, int64_t first, int64_t panels, double eps, T* taken);
  // Normalised entries of up to `panels` panels of columns from `first`: to[p * to_panel + row * to_row], zeros beyond
  // the last column. From rows [row, row + rows) of the view, or from entries that were taken.
  void (*normalise)(const BarlowTwinsView<T>&, int64_t row, int64_t rows, int64_t first, int64_t panels, T* to,
                    int64_t to_row, int64_t to_panel);
  void (*normalise_taken)(const BarlowTwinsView<T>&, int64_t first, int64_t panels, const T* taken, T* to,
                          int64_t to_row, int64_t to_panel);
  // to[k * panel + r] = from[r * from_row + k], for `rows` <= panel rows and `depth` columns; zeros beyond the rows.
  void (*transpose)(const T* from, int64_t from_row, int64_t rows, int64_t depth, T* to);
  void (*multiply)(const BarlowTwinsProduct<T>&);
  // sum over the rows of a times b, per column of a panel.
  void (*column_products)(const T* a, const T* b, int64_t stride, int64_t rows, double* sums);
  // sum of a times b.
  double (*inner)(const T* a, const T* b, int64_t count);
  void (*finish_strip)(const BarlowTwinsStrip<T>&);
  // Panel of C (depth, panel), its first column `first`, becomes the panel of dL/dC times scale, the gradient's share
  // of each product; mean_along: the sum over the depth of dL/dC times C, times scale. lambda2: 2 lambda.
  void (*weigh)(T* c, int64_t depth, int64_t first, T lambda2, T scale, T* mean_along);
  // gradient = (pull - own * mean_along) * inverse * grad, rows [row, row + rows), `panel` columns from `first`.
  void (*finish_rows)(const BarlowTwinsView<T>& own, int64_t row, int64_t rows, int64_t first, const T* pull,
                      const T* mean_along, T grad, T* gradient);
  // A panel (depth, panel) of sums becomes columns of C (depth, columns); adds the squares off the diagonal, and those
  // of C_ii - 1, to terms[0] and terms[1].
  void (*store_correlation)(const T* sums, int64_t depth, int64_t first, int64_t columns, T scale, T* c, double* terms);
};

namespace portable {
template <typename T>
BarlowTwinsKernels<T> barlow_twins_kernels();
}
namespace avx2 {
template <typename T>
BarlowTwinsKernels<T> barlow_twins_kernels();
}
namespace avx512 {
template <typename T>
BarlowTwinsKernels<T> barlow_twins_kernels();
}

}  // namespace sslfast
