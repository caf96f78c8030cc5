// The loops of Barlow Twins over rows, columns and tiles, compiled once per capability. No std:: templates here: an
// inline function that is compiled with wider vectors must not be the copy that the linker keeps for everybody.
#include "barlow_twins_tiles.h"

#include "barlow_twins_transpose.h"
#include "sslfast/multiply.h"

namespace sslfast {
namespace {

// Per tile: a panel of b (32 KB with the widest vectors) stays in the first cache, a block of a in the second.
constexpr int64_t depth_step = 256;
constexpr int64_t group_step = 16;
// Panels whose columns are taken together.
constexpr int most_panels = 4;
// A lane adds up this many numbers before they go to a sum in double.
constexpr int64_t rows_per_sum = 128;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
inline typename Vector<T>::type load_some(const T* from, int64_t used) {
  if (used >= Vector<T>::lanes) return load(from);
  typename Vector<T>::type value{};
  for (int64_t lane = 0; lane < used; ++lane) value[lane] = from[lane];
  return value;
}

template <typename T>
inline void store_some(T* to, typename Vector<T>::type value, int64_t used) {
  if (used >= Vector<T>::lanes) return store(to, value);
  for (int64_t lane = 0; lane < used; ++lane) to[lane] = value[lane];
}

// The two vectors of a panel's row. `used`: how many of its columns there are.
template <typename T>
struct Pair {
  typename Vector<T>::type left, right;
};

template <typename T>
inline Pair<T> load_pair(const T* from, int64_t used = panel_columns<T>) {
  return {load_some(from, used), load_some(from + smaller(used, Vector<T>::lanes), used - Vector<T>::lanes)};
}

template <typename T>
inline void store_pair(T* to, const Pair<T>& value, int64_t used = panel_columns<T>) {
  store_some(to, value.left, used);
  if (used > Vector<T>::lanes) store_some(to + Vector<T>::lanes, value.right, used - Vector<T>::lanes);
}

// sums[column] += term(row) over the rows.
template <typename T, typename Term>
inline void add_rows(int64_t rows, double* sums, const Term& term) {
  for (int64_t begin = 0; begin < rows; begin += rows_per_sum) {
    const int64_t end = smaller(rows, begin + rows_per_sum);
    Pair<T> part{};
    for (int64_t row = begin; row < end; ++row) {
      const Pair<T> next = term(row);
      part.left += next.left;
      part.right += next.right;
    }
    T lanes[panel_columns<T>];
    store_pair(lanes, part);
    for (int column = 0; column < panel_columns<T>; ++column) sums[column] += lanes[column];
  }
}

// For columns whose squares overflow T, or that hold NaN or infinity.
template <typename T>
double variance_in_double(const BarlowTwinsView<T>& view, int64_t column) {
  double sum = 0, squares = 0;
  for (int64_t row = 0; row < view.count; ++row) sum += view.rows[row * view.columns + column];
  const double mean = sum / static_cast<double>(view.count);
  for (int64_t row = 0; row < view.count; ++row) {
    const double apart = view.rows[row * view.columns + column] - mean;
    squares += apart * apart;
  }
  view.center[column] = static_cast<T>(mean);
  view.rest[column] = static_cast<T>(mean - view.center[column]);
  return squares / static_cast<double>(view.count);
}

// Copies columns, and adds them up.
template <bool whole, typename T>
inline void take(const BarlowTwinsView<T>& view, int64_t first, int64_t panels, T* taken, double* sums) {
  constexpr int panel = panel_columns<T>;
  for (int64_t begin = 0; begin < view.count; begin += rows_per_sum) {
    const int64_t end = smaller(view.count, begin + rows_per_sum);
    Pair<T> part[most_panels] = {};
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t column = first + p * panel;
        const Pair<T> z =
            load_pair(view.rows + row * view.columns + column, whole ? panel : smaller(panel, view.columns - column));
        store_pair(taken + (p * view.count + row) * panel, z);
        part[p].left += z.left;
        part[p].right += z.right;
      }
    }
    T lanes[most_panels * panel];
    for (int64_t p = 0; p < panels; ++p) store_pair(lanes + p * panel, part[p]);
    for (int64_t column = 0; column < panels * panel; ++column) sums[column] += lanes[column];
  }
}

template <typename T>
void statistics(const BarlowTwinsView<T>& view, int64_t first, int64_t panels, double eps, T* taken) {
  constexpr int panel = panel_columns<T>;
  const double count = static_cast<double>(view.count);
  double means[most_panels * panel] = {};
  first + panels* panel <= view.columns ? take<true>(view, first, panels, taken, means)
                                        : take<false>(view, first, panels, taken, means);
  for (int64_t p = 0; p < panels; ++p) {
    T center[panel];
    for (int column = 0; column < panel; ++column) center[column] = static_cast<T>(means[p * panel + column] / count);
    // Squares are taken about the mean: raw moments cancel where the mean is large against the deviation.
    const Pair<T> about = load_pair(center);
    double sums[panel] = {}, squares[panel] = {};
    for (int64_t begin = 0; begin < view.count; begin += rows_per_sum) {
      const int64_t end = smaller(view.count, begin + rows_per_sum);
      Pair<T> part{}, part_squares{};
      for (int64_t row = begin; row < end; ++row) {
        // The next columns, which the same thread takes.
        const T* next = view.rows + row * view.columns + first + (panels + p) * panel;
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + Vector<T>::lanes, 0, 2);
        Pair<T> apart = load_pair(taken + (p * view.count + row) * panel);
        apart.left -= about.left;
        apart.right -= about.right;
        part.left += apart.left;
        part.right += apart.right;
        part_squares.left += apart.left * apart.left;
        part_squares.right += apart.right * apart.right;
      }
      T lanes[2 * panel];
      store_pair(lanes, part);
      store_pair(lanes + panel, part_squares);
      for (int column = 0; column < panel; ++column) {
        sums[column] += lanes[column];
        squares[column] += lanes[panel + column];
      }
    }
    const int64_t from = first + p * panel;
    for (int64_t column = 0; column < panel && from + column < view.columns; ++column) {
      const double rest = sums[column] / count;
      double variance = squares[column] / count - rest * rest;
      view.center[from + column] = center[column];
      view.rest[from + column] = static_cast<T>(rest);
      if (!(variance < __builtin_inf())) variance = variance_in_double(view, from + column);
      if (variance < 0) variance = 0;
      view.inverse[from + column] = static_cast<T>(1 / __builtin_sqrt(variance + eps));
    }
  }
}

template <typename T>
struct Scaling {
  Pair<T> center, rest, inverse;
  Scaling(const BarlowTwinsView<T>& view, int64_t first, int64_t used)
      : center(load_pair(view.center + first, used)),
        rest(load_pair(view.rest + first, used)),
        inverse(load_pair(view.inverse + first, used)) {}
  Pair<T> operator()(const Pair<T>& z) const {
    return {(z.left - center.left - rest.left) * inverse.left, (z.right - center.right - rest.right) * inverse.right};
  }
};

template <typename T>
void normalise(const BarlowTwinsView<T>& view, int64_t row, int64_t rows, int64_t first, int64_t panels, T* to,
               int64_t to_row, int64_t to_panel) {
  constexpr int panel = panel_columns<T>;
  // A few rows at a time: neighbouring panels' entries stand in neighbouring lines of memory.
  constexpr int64_t row_step = 16;
  for (int64_t begin = 0; begin < rows; begin += row_step) {
    const int64_t end = smaller(rows, begin + row_step);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t column = smaller(first + p * panel, view.columns);
      const int64_t used = smaller(panel, view.columns - column);
      const Scaling<T> scaled(view, column, used);
      const T* from = view.rows + row * view.columns + column;
      T* target = to + p * to_panel;
      if (used == panel) {
        for (int64_t k = begin; k < end; ++k) {
          store_pair(target + k * to_row, scaled(load_pair(from + k * view.columns)));
        }
      } else {
        for (int64_t k = begin; k < end; ++k) {
          store_pair(target + k * to_row, scaled(load_pair(from + k * view.columns, used)));
        }
      }
    }
  }
}

template <typename T>
void normalise_taken(const BarlowTwinsView<T>& view, int64_t first, int64_t panels, const T* taken, T* to,
                     int64_t to_row, int64_t to_panel) {
  constexpr int panel = panel_columns<T>;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t column = first + p * panel;
    const Scaling<T> scaled(view, column, smaller(panel, view.columns - column));
    for (int64_t k = 0; k < view.count; ++k) {
      store_pair(to + p * to_panel + k * to_row, scaled(load_pair(taken + (p * view.count + k) * panel)));
    }
  }
}

// Asks for the next few lines of entries that are wanted soon.
template <bool write, typename T>
struct Prefetch {
  const BarlowTwinsAhead<T>& wanted;
  int64_t row = 0, line = 0;
  void operator()(int64_t lines) {
    for (; lines > 0 && row < wanted.rows; --lines) {
      __builtin_prefetch(wanted.from + row * wanted.row + line * (64 / static_cast<int64_t>(sizeof(T))), write, 2);
      if (++line == wanted.lines) {
        line = 0;
        ++row;
      }
    }
  }
};

template <typename T>
void multiply_tiles(const BarlowTwinsProduct<T>& p) {
  constexpr int panel = panel_columns<T>;
  const int64_t tiles = (p.depth + depth_step - 1) / depth_step * p.groups * p.panels;
  const int64_t lines_read = p.read.rows * p.read.lines / tiles + 1;
  const int64_t lines_written = p.write.rows * p.write.lines / tiles + 1;
  Prefetch<false, T> read{p.read};
  Prefetch<true, T> write{p.write};
  for (int64_t k = 0; k < p.depth; k += depth_step) {
    const int64_t depth = smaller(depth_step, p.depth - k);
    const bool add = p.accumulate || k > 0;
    for (int64_t block = 0; block < p.groups; block += group_step) {
      const int64_t end = smaller(p.groups, block + group_step);
      for (int64_t column = 0; column < p.panels; ++column) {
        const T* b = p.b + column * p.b_panel + k * panel;
        for (int64_t g = block; g < end; ++g) {
          const T* a = p.a + g * p.a_group + k / depth_step * p.a_step;
          T* c = p.c + g * group_rows * p.c_row + column * p.c_panel;
          read(lines_read);
          write(lines_written);
          // Constant strides make better addresses: rows of a matrix, or groups packed by depth.
          if (p.a_depth == 1) {
            add ? multiply<true>(a, p.a_row, 1, b, panel, depth, c, p.c_row)
                : multiply<false>(a, p.a_row, 1, b, panel, depth, c, p.c_row);
          } else {
            add ? multiply<true>(a, 1, group_rows, b, panel, depth, c, p.c_row)
                : multiply<false>(a, 1, group_rows, b, panel, depth, c, p.c_row);
          }
        }
      }
    }
  }
}

template <typename T>
void column_products(const T* a, const T* b, int64_t stride, int64_t rows, double* sums) {
  for (int column = 0; column < panel_columns<T>; ++column) sums[column] = 0;
  add_rows<T>(rows, sums, [&](int64_t row) {
    const Pair<T> one = load_pair(a + row * stride), other = load_pair(b + row * stride);
    return Pair<T>{one.left * other.left, one.right * other.right};
  });
}

template <typename T>
double inner(const T* a, const T* b, int64_t count) {
  constexpr int lanes = Vector<T>::lanes;
  double sum = 0;
  int64_t k = 0;
  while (k + lanes <= count) {
    const int64_t end = smaller(count, k + rows_per_sum * lanes);
    typename Vector<T>::type part{};
    for (; k + lanes <= end; k += lanes) part += load(a + k) * load(b + k);
    for (int lane = 0; lane < lanes; ++lane) sum += part[lane];
  }
  for (; k < count; ++k) sum += static_cast<double>(a[k]) * b[k];
  return sum;
}

template <typename T>
void finish_strip(const BarlowTwinsStrip<T>& strip) {
  constexpr int panel = panel_columns<T>;
  const Pair<T> weight = load_pair(strip.weight, strip.used);
  double sums[panel] = {};
  add_rows<T>(strip.rows, sums, [&](int64_t row) {
    const Pair<T> own = load_pair(strip.own + (strip.first + row) * panel);
    const Pair<T> other = load_pair(strip.other + (strip.first + row) * panel);
    Pair<T> pull = load_pair(strip.pull + row * panel);
    pull.left = pull.left * strip.gram_scale + other.left * weight.left;
    pull.right = pull.right * strip.gram_scale + other.right * weight.right;
    store_pair(strip.pull + row * panel, pull);
    return Pair<T>{own.left * pull.left, own.right * pull.right};
  });
  T mean_along[panel];
  for (int column = 0; column < panel; ++column) {
    mean_along[column] = static_cast<T>(sums[column] / static_cast<double>(strip.count));
    if (column < strip.used) strip.along[column] = static_cast<T>(sums[column]);
  }
  // The gradient's mean over all rows is zero, because the columns of both views are centred.
  const Pair<T> along = load_pair(mean_along);
  Pair<T> scale = load_pair(strip.inverse, strip.used);
  scale.left *= strip.grad;
  scale.right *= strip.grad;
  for (int64_t row = 0; row < strip.rows; ++row) {
    const Pair<T> own = load_pair(strip.own + (strip.first + row) * panel);
    Pair<T> pull = load_pair(strip.pull + row * panel);
    pull.left = (pull.left - own.left * along.left) * scale.left;
    pull.right = (pull.right - own.right * along.right) * scale.right;
    store_pair(strip.gradient + row * strip.columns, pull, strip.used);
  }
}

template <typename T>
void weigh(T* c, int64_t depth, int64_t first, T lambda2, T scale, T* mean_along) {
  constexpr int panel = panel_columns<T>;
  T diagonal[panel] = {};
  for (int64_t column = 0; column < panel && first + column < depth; ++column) {
    T* at = c + (first + column) * panel + column;
    diagonal[column] = *at;
    *at = 0;
  }
  double sums[panel] = {};
  add_rows<T>(depth, sums, [&](int64_t row) {
    const Pair<T> value = load_pair(c + row * panel);
    const Pair<T> weighed{value.left * lambda2, value.right * lambda2};
    store_pair(c + row * panel, Pair<T>{weighed.left * scale, weighed.right * scale});
    return Pair<T>{value.left * weighed.left, value.right * weighed.right};
  });
  for (int64_t column = 0; column < panel; ++column) {
    const T weighed = 2 * (diagonal[column] - 1);
    mean_along[column] = static_cast<T>(scale * (sums[column] + static_cast<double>(weighed) * diagonal[column]));
    if (first + column < depth) c[(first + column) * panel + column] = weighed * scale;
  }
}

template <typename T>
void finish_rows(const BarlowTwinsView<T>& own, int64_t row, int64_t rows, int64_t first, const T* pull,
                 const T* mean_along, T grad, T* gradient) {
  constexpr int panel = panel_columns<T>;
  const int64_t used = smaller(panel, own.columns - first);
  const Scaling<T> scaled(own, first, used);
  const Pair<T> along = load_pair(mean_along);
  const Pair<T> scale{scaled.inverse.left * grad, scaled.inverse.right * grad};
  for (int64_t k = 0; k < rows; ++k) {
    const Pair<T> value = scaled(load_pair(own.rows + (row + k) * own.columns + first, used));
    const Pair<T> moved = load_pair(pull + k * panel);
    store_pair(gradient + (row + k) * own.columns + first,
               Pair<T>{(moved.left - value.left * along.left) * scale.left,
                       (moved.right - value.right * along.right) * scale.right},
               used);
  }
}

template <typename T>
void store_correlation(const T* sums, int64_t depth, int64_t first, int64_t columns, T scale, T* c, double* terms) {
  constexpr int panel = panel_columns<T>;
  const int64_t used = smaller(panel, columns - first);
  double squares[panel] = {};
  double diagonal = 0;
  add_rows<T>(depth, squares, [&](int64_t row) {
    Pair<T> value = load_pair(sums + row * panel, used);
    value.left *= scale;
    value.right *= scale;
    store_pair(c + row * columns + first, value, used);
    const int64_t own = row - first;
    if (own >= 0 && own < used) {
      const double apart = static_cast<double>(c[row * columns + row]) - 1;
      diagonal += apart * apart;
      (own < Vector<T>::lanes ? value.left : value.right)[own % Vector<T>::lanes] = 0;
    }
    return Pair<T>{value.left * value.left, value.right * value.right};
  });
  for (int column = 0; column < panel; ++column) terms[0] += squares[column];
  terms[1] += diagonal;
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
BarlowTwinsKernels<T> barlow_twins_kernels() {
  return {group_rows,    panel_columns<T>,    most_panels,   depth_step,         &statistics<T>,
          &normalise<T>, &normalise_taken<T>, &transpose<T>, &multiply_tiles<T>, &column_products<T>,
          &inner<T>,     &finish_strip<T>,    &weigh<T>,     &finish_rows<T>,    &store_correlation<T>};
}

template BarlowTwinsKernels<float> barlow_twins_kernels<float>();
template BarlowTwinsKernels<double> barlow_twins_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
