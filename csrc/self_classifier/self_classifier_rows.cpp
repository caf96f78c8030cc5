// The loops over rows of the Self-Classifier loss, compiled once per capability. No std:: templates here: an inline
// function that is compiled with wider vectors must not be the copy that the linker keeps for everybody.
#include "self_classifier_rows.h"

#include "self_classifier_tile.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

// Rows that are taken at once, so that the columns' numbers are read from the nearest cache all but once.
constexpr int block_rows = 2;
constexpr int statistics_rows = 8;

template <typename T>
constexpr T nothing = -static_cast<T>(__builtin_inf());

// What is left of a row from here on: whole vectors, or the first lanes and -infinity, whose soft-max is 0, behind
// them.
template <typename T>
inline V<T> read(const T* from, int64_t left) {
  return left >= step<T> ? load(from) : load_part(from, left, splat(nothing<T>));
}

template <typename T>
inline void write(T* to, int64_t left, V<T> value) {
  if (left >= step<T>) {
    store(to, value);
  } else {
    store_part(to, left, value);
  }
}

template <typename T>
inline V<T> larger(V<T> next, V<T> best) {
  return next > best ? next : best;
}

// What is subtracted from a column: its maximum so far, unless nothing but -infinity has come.
template <typename T>
inline V<T> base_of(V<T> highest) {
  return highest == nothing<T> ? V<T>{} : highest;
}

template <int count, typename T>
void columns_of(const SelfClassifierProblem<T>& p, const T* x, int64_t stride, T* scratch, T* row_maximum,
                T* row_inverse, T* partial) {
  const int64_t classes = p.classes, width = p.width;
  const T row_factor = p.row_factor, column_factor = p.column_factor;
  V<T> inverse[count];
  for (int r = 0; r < count; ++r) {
    const T* row = x + r * stride;
    T* exponentials = scratch + r * width;
    V<T> best = splat(nothing<T>);
    for (int64_t k = 0; k < classes; k += step<T>) best = larger<T>(read(row + k, classes - k), best);
    const T highest = largest_of<T>(best);
    V<T> sum{};
    for (int64_t k = 0; k < classes; k += step<T>) {
      const V<T> value = power_of_two((read(row + k, classes - k) - highest) * row_factor);
      store(exponentials + k, value);
      sum += value;
    }
    row_maximum[r] = highest;
    row_inverse[r] = 1 / sum_of<T>(sum);
    inverse[r] = splat(row_inverse[r]);
  }
  T* const sums = partial + width;
  T* const masses = sums + width;
  for (int64_t k = 0; k < classes; k += step<T>) {
    V<T> value[count];
    const V<T> before = load(partial + k);
    V<T> highest = before;
    for (int r = 0; r < count; ++r) {
      value[r] = read(x + r * stride + k, classes - k);
      __builtin_prefetch(x + (count + r) * stride + k, 0, 2);
      highest = larger<T>(value[r], highest);
    }
    const V<T> base = base_of<T>(highest);
    V<T> sum = load(sums + k) * power_of_two((before - base) * column_factor);
    V<T> mass = load(masses + k);
    for (int r = 0; r < count; ++r) {
      sum += power_of_two((value[r] - base) * column_factor);
      mass += load(scratch + r * width + k) * inverse[r];
    }
    store(partial + k, highest);
    store(sums + k, sum);
    store(masses + k, mass);
  }
}

template <typename T>
void columns(const SelfClassifierProblem<T>& p, int64_t view, int64_t first, int64_t last, T* scratch, T* row_maximum,
             T* row_inverse, T* partial) {
  for (int64_t k = 0; k < p.width; k += step<T>) {
    store(partial + k, splat(nothing<T>));
    store(partial + p.width + k, V<T>{});
    store(partial + 2 * p.width + k, V<T>{});
  }
  const int64_t stride = p.strides[view];
  int64_t row = first;
  for (; row + statistics_rows <= last; row += statistics_rows) {
    columns_of<statistics_rows>(p, p.logits[view] + row * stride, stride, scratch, row_maximum + row, row_inverse + row,
                                partial);
  }
  for (; row < last; ++row) {
    columns_of<1>(p, p.logits[view] + row * stride, stride, scratch, row_maximum + row, row_inverse + row, partial);
  }
}

template <typename T>
void join_columns(const T* partial, int64_t count, int64_t stride, int64_t width, T column_factor, T* result) {
  for (int64_t k = 0; k < width; k += step<T>) {
    V<T> highest = splat(nothing<T>);
    for (int64_t c = 0; c < count; ++c) highest = larger<T>(load(partial + c * stride + k), highest);
    const V<T> base = base_of<T>(highest);
    double sum[step<T>] = {}, mass[step<T>] = {};
    for (int64_t c = 0; c < count; ++c) {
      const T* from = partial + c * stride + k;
      const V<T> part = load(from + width) * power_of_two((load(from) - base) * column_factor);
      for (int lane = 0; lane < step<T>; ++lane) {
        sum[lane] += part[lane];
        mass[lane] += from[2 * width + lane];
      }
    }
    store(result + k, highest);
    for (int lane = 0; lane < step<T>; ++lane) {
      result[width + k + lane] = static_cast<T>(sum[lane]);
      result[2 * width + k + lane] = static_cast<T>(mass[lane]);
    }
  }
}

template <typename T>
void join_sums(const T* partial, int64_t count, int64_t stride, int64_t size, T* result) {
  for (int64_t k = 0; k < size; k += step<T>) {
    double sum[step<T>] = {};
    for (int64_t c = 0; c < count; ++c) {
      for (int lane = 0; lane < step<T>; ++lane) sum[lane] += partial[c * stride + k + lane];
    }
    for (int lane = 0; lane < step<T>; ++lane) result[k + lane] = static_cast<T>(sum[lane]);
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <int count, typename T>
double forward_rows(const SelfClassifierProblem<T>& problem, int64_t first, T* scratch, T* target_inverse,
                    T* target_along, T* pull, T* partial) {
  const SelfClassifierProblem<T> p = problem;  // a copy, which no store can change
  const int64_t views = p.views, width = p.width, classes = p.classes;
  T* const softmax = scratch;                         // views x count x width: t
  T* const along = softmax + views * count * width;   // views x count x step: sum_k T A
  T* const pulled = along + views * count * step<T>;  // views x count x step: sum_k S p / (p + eps)
  Tile<count, T> tile(pulled + views * count * step<T>, views, width);
  for (int64_t v = 0; v < views; ++v) {
    const T* const x = p.logits[v] + first * p.strides[v];
    const T* const maximum = p.column_maximum + v * width;
    const T* const inverse = p.column_inverse + v * width;
    const int64_t stride = p.strides[v];
    V<T> length[count] = {};
    for (int64_t k = 0; k < classes; k += step<T>) {
      const V<T> highest = load(maximum + k), factor = load(inverse + k);
      for (int r = 0; r < count; ++r) {
        const V<T> value = power_of_two((read(x + r * stride + k, classes - k) - highest) * p.column_factor) * factor;
        store(softmax + (v * count + r) * width + k, value);
        length[r] += value;
      }
    }
    for (int r = 0; r < count; ++r) {
      const T sum = sum_of<T>(length[r]);
      target_inverse[v * p.rows + first + r] = 1 / (sum < p.eps ? p.eps : sum);
      target_along[v * p.rows + first + r] = sum < p.eps ? 0 : 1;
    }
  }
  for (int64_t k = 0; k < 2 * views * count * step<T>; k += step<T>) store(along + k, V<T>{});
  V<T> loss{};
  for (int64_t start = 0; start < classes; start += tile.columns) {
    const int64_t used = smaller(tile.columns, width - start);
    for (int64_t v = 0; v < views; ++v) {
      const T* const scale = p.prediction_scale + v * width + start;
      for (int r = 0; r < count; ++r) {
        const int64_t row = v * p.rows + first + r;
        const T* const x = p.logits[v] + (first + r) * p.strides[v] + start;
        const T* const t = softmax + (v * count + r) * width + start;
        const int64_t next = count * p.strides[v];
        const T maximum = p.row_maximum[row], inverse = p.row_inverse[row], factor = target_inverse[row];
        for (int64_t c = 0; c < used; c += step<T>) {
          const V<T> q = power_of_two((read(x + c, classes - start - c) - maximum) * p.row_factor) * inverse;
          const int64_t at = (v * count + r) * tile.columns + c;
          store(tile.target + at, load(t + c) * factor);
          store(tile.share + at, q * load(scale + c));
          __builtin_prefetch(x + next + c, 0, 2);
        }
      }
    }
    tile.take_logarithms(views, p.eps);
    tile.add_up(views, p.globals);
    for (int64_t v = 0; v < views; ++v) {
      T* const pulls = partial + v * width + start;             // sum_b S p / (p + eps)
      T* const alongs = partial + (views + v) * width + start;  // sum_b T A
      for (int r = 0; r < count; ++r) {
        V<T> row_along = load(along + (v * count + r) * step<T>);
        V<T> row_pull = load(pulled + (v * count + r) * step<T>);
        for (int64_t c = 0; c < used; c += step<T>) {
          const int64_t at = (v * count + r) * tile.columns + c;
          V<T> others_target, others_log;
          tile.others(v, p.globals, r * tile.columns + c, others_target, others_log);
          const V<T> one_pull = others_target * load(tile.share + at);
          const V<T> one_along = others_log * load(tile.target + at);
          loss += others_target * load(tile.log + at);
          row_along += one_along;
          row_pull += one_pull;
          store(pulls + c, load(pulls + c) + one_pull);
          store(alongs + c, load(alongs + c) + one_along);
        }
        store(along + (v * count + r) * step<T>, row_along);
        store(pulled + (v * count + r) * step<T>, row_pull);
      }
    }
  }
  for (int64_t v = 0; v < views; ++v) {
    T* const alongs = partial + (views + v) * width;
    V<T> factor[count];
    for (int r = 0; r < count; ++r) {
      const int64_t row = v * p.rows + first + r;
      target_along[row] *= sum_of<T>(load(along + (v * count + r) * step<T>));
      pull[row] = sum_of<T>(load(pulled + (v * count + r) * step<T>));
      factor[r] = splat(target_inverse[row] * target_along[row]);
    }
    for (int64_t k = 0; k < classes; k += step<T>) {
      V<T> sum = load(alongs + k);
      for (int r = 0; r < count; ++r) sum -= load(softmax + (v * count + r) * width + k) * factor[r];
      store(alongs + k, sum);
    }
  }
  double total = 0;
  for (int lane = 0; lane < step<T>; ++lane) total += loss[lane];
  return total;
}

template <typename T>
double forward(const SelfClassifierProblem<T>& p, int64_t first, int64_t last, T* scratch, T* target_inverse,
               T* target_along, T* pull, T* partial) {
  for (int64_t k = 0; k < 2 * p.views * p.width; k += step<T>) store(partial + k, V<T>{});
  double loss = 0;
  int64_t row = first;
  for (; row + block_rows <= last; row += block_rows) {
    loss += forward_rows<block_rows>(p, row, scratch, target_inverse, target_along, pull, partial);
  }
  for (; row < last; ++row) loss += forward_rows<1>(p, row, scratch, target_inverse, target_along, pull, partial);
  return loss;
}

template <int count, typename T>
void backward_rows(const SelfClassifierProblem<T>& problem, int64_t first, T* scratch, T* gradient) {
  const SelfClassifierProblem<T> p = problem;  // a copy, which no store can change
  const int64_t views = p.views, width = p.width, classes = p.classes;
  T* const softmax = scratch;                        // views x count x width: q
  T* const along = softmax + views * count * width;  // views x count: sum_k of the prediction's part, see below
  Tile<count, T> tile(along + views * count * step<T>, views, width);
  for (int64_t v = 0; v < views; ++v) {
    const T* const scaled = p.prediction_along + v * width;
    for (int r = 0; r < count; ++r) {
      const int64_t row = v * p.rows + first + r;
      const T* const x = p.logits[v] + (first + r) * p.strides[v];
      T* const q = softmax + (v * count + r) * width;
      const T maximum = p.row_maximum[row], inverse = p.row_inverse[row];
      V<T> sum{};
      for (int64_t k = 0; k < classes; k += step<T>) {
        const V<T> value = power_of_two((read(x + k, classes - k) - maximum) * p.row_factor) * inverse;
        store(q + k, value);
        sum += value * load(scaled + k);
      }
      along[v * count + r] = p.pull[row] - sum_of<T>(sum);
    }
  }
  for (int64_t start = 0; start < classes; start += tile.columns) {
    const int64_t used = smaller(tile.columns, width - start);
    for (int64_t v = 0; v < views; ++v) {
      const T* const scale = p.prediction_scale + v * width + start;
      const T* const maximum = p.column_maximum + v * width + start;
      const T* const inverse = p.column_inverse + v * width + start;
      for (int r = 0; r < count; ++r) {
        const T* const x = p.logits[v] + (first + r) * p.strides[v] + start;
        const T* const q = softmax + (v * count + r) * width + start;
        const int64_t next = count * p.strides[v];
        const T factor = p.target_inverse[v * p.rows + first + r];
        T* const result = gradient + (v * p.rows + first + r) * classes + start;
        for (int64_t c = 0; c < used; c += step<T>) {
          const V<T> logit = read(x + c, classes - start - c);
          const V<T> t = power_of_two((logit - load(maximum + c)) * p.column_factor) * load(inverse + c);
          const int64_t at = (v * count + r) * tile.columns + c;
          store(tile.target + at, t * factor);
          store(tile.share + at, load(q + c) * load(scale + c));
          __builtin_prefetch(x + next + c, 0, 2);
          __builtin_prefetch(result + c, 1, 3);
        }
      }
    }
    tile.take_logarithms(views, p.eps);
    tile.add_up(views, p.globals);
    for (int64_t v = 0; v < views; ++v) {
      const T* const column = p.column_along + v * width + start;
      const T* const scaled = p.prediction_along + v * width + start;
      for (int r = 0; r < count; ++r) {
        const int64_t row = v * p.rows + first + r;
        const T* const q = softmax + (v * count + r) * width + start;
        T* const result = gradient + row * classes + start;
        const T row_along = p.target_along[row], prediction = along[v * count + r], length = 1 / p.target_inverse[row];
        for (int64_t c = 0; c < used; c += step<T>) {
          const int64_t at = (v * count + r) * tile.columns + c;
          V<T> others_target, others_log;
          tile.others(v, p.globals, r * tile.columns + c, others_target, others_log);
          // t = T times the sum of t.
          const V<T> of_target = load(tile.target + at) * (others_log - row_along - load(column + c) * length);
          const V<T> of_prediction =
              others_target * load(tile.share + at) - load(q + c) * (load(scaled + c) + prediction);
          write(result + c, classes - start - c, of_target * p.target_scale + of_prediction * p.prediction_gradient);
        }
      }
    }
  }
}

template <typename T>
void backward(const SelfClassifierProblem<T>& p, int64_t first, int64_t last, T* scratch, T* gradient) {
  int64_t row = first;
  for (; row + block_rows <= last; row += block_rows) backward_rows<block_rows>(p, row, scratch, gradient);
  for (; row < last; ++row) backward_rows<1>(p, row, scratch, gradient);
}

int64_t columns_scratch(int64_t width) { return statistics_rows * width; }

template <typename T>
int64_t forward_scratch(int64_t views, int64_t width) {
  return views * block_rows * (width + 2 * step<T>)+Tile<block_rows, T>::numbers(views);
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
SelfClassifierKernels<T> self_classifier_kernels() {
  return {step<T>,          block_rows,  &columns_scratch, &forward_scratch<T>, &columns<T>,
          &join_columns<T>, &forward<T>, &join_sums<T>,    &backward<T>};
}

template SelfClassifierKernels<float> self_classifier_kernels<float>();
template SelfClassifierKernels<double> self_classifier_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
