// One row of the SwAV loss, all views together: no code is written to memory beyond a chunk of columns. Compiled once
// per capability; no std:: templates here (see nt_xent_tiles.cpp).
#include "swav_loss_rows.h"

#include "sslfast/score_rows.h"

namespace sslfast {
namespace {

constexpr double ln_2 = 0.6931471805599453;
constexpr double log2_e = 1.4426950408889634;

// Whole vectors, of the widest kind.
inline int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

template <typename T>
int64_t scratch(int64_t high, int64_t count) {
  // The sums are doubles, and come first.
  return static_cast<int64_t>(sizeof(double) / sizeof(T)) * padded(count + 2 * high) + (high + 1) * columns_per_sum +
         2 * padded(count + 2 * high);
}

// Of one row. Numbers: one per view, one per code, one per code's product with the other views' scores.
template <typename T>
struct RowSums {
  T* chunk;   // a chunk of columns per code, or of the views' sum
  T* shifts;  // what the exponents were reduced by
  T* logarithms;
  double* sums;
};

template <typename T>
inline RowSums<T> row_sums(const SwavProblem<T>& problem, T* scratch) {
  const int64_t size = padded(problem.count + 2 * problem.high);
  double* sums = reinterpret_cast<double*>(scratch);
  T* chunk = reinterpret_cast<T*>(sums + size);
  T* numbers = chunk + (problem.high + 1) * columns_per_sum;
  return {chunk, numbers, numbers + size, sums};
}

// What comes after view v's columns from `begin` on: the next view's, after the last one the next columns of the first,
// after the last columns the next row. Chunks of many views are too short for the processor to foresee this.
struct Chunk {
  int64_t view;
  int64_t place;  // in the view
};

template <typename T>
inline Chunk chunk_after(const SwavProblem<T>& problem, int64_t row, int64_t begin, int64_t v) {
  if (v + 1 < problem.count) return {v + 1, row * problem.columns + begin};
  const int64_t next = begin + columns_per_sum;
  if (next < problem.columns) return {0, row * problem.columns + next};
  return {0, smaller(row + 1, problem.rows - 1) * problem.columns};
}

// What a view's scores are taken relative to: their maximum over the first `columns`.
template <typename T>
inline T level_of(const T* scores, int64_t columns) {
  const T highest = highest_exponent<T>(scores, columns, T(1), nullptr);
  return highest == lowest<T> ? T(0) : highest;
}

// Returns whether every exponential stayed in range of the shifts, which are maxima over the first
// `columns_known`.
template <typename T>
inline bool sum_row(const SwavProblem<T>& problem, int64_t row, int64_t columns_known, const RowSums<T>& of) {
  using V = typename Vector<T>::type;
  const int64_t high = problem.high, count = problem.count, numbers = count + 2 * high;
  double* code_sums = of.sums + count;
  double* products = code_sums + high;
  for (int64_t index = 0; index < numbers; ++index) of.sums[index] = 0;
  T* total = of.chunk;
  for (int64_t begin = 0; begin < problem.columns; begin += columns_per_sum) {
    const int64_t columns = smaller(columns_per_sum, problem.columns - begin);
    for (int64_t v = 0; v < count; ++v) {
      const T* scores = problem.views[v] + row * problem.columns + begin;
      if (begin == 0) of.shifts[v] = level_of(scores, columns_known);
      const T shift = of.shifts[v];
      const Chunk after = chunk_after(problem, row, begin, v);
      const T* next = problem.views[after.view] + after.place;
      V sum{};
      each_vector<T>(0, columns, [&](int64_t k, int64_t lanes) {
        __builtin_prefetch(next + k);
        const V z = scores_at(scores + k, lanes) - shift;
        const V before = v == 0 ? V{} : load(total + k);
        store(total + k, before + (lanes == Vector<T>::lanes ? z : scores_at(scores + k, lanes, shift) - shift));
        sum += exponential2(z * problem.view_scale);
      });
      of.sums[v] += total_of<T>(sum);
    }
    for (int64_t i = 0; i < high; ++i) {
      const T* scores = problem.views[i] + row * problem.columns + begin;
      const T* potential = problem.potential + i * problem.width + begin;
      if (begin == 0) {
        of.shifts[count + i] = highest_exponent(scores, columns_known, problem.code_scale, potential);
      }
      const T shift = of.shifts[count + i];
      V sum{};
      V product{};
      each_vector<T>(0, columns, [&](int64_t k, int64_t lanes) {
        const V weight =
            exponential2((exponents_at(scores + k, lanes, problem.code_scale) - load(potential + k)) - shift);
        sum += weight;
        product += weight * (load(total + k) - (scores_at(scores + k, lanes, of.shifts[i]) - of.shifts[i]));
      });
      code_sums[i] += total_of<T>(sum);
      products[i] += total_of<T>(product);
    }
  }
  for (int64_t index = 0; index < numbers; ++index) {
    if (!(__builtin_fabs(of.sums[index]) < largest_sum)) return false;
  }
  return true;
}

template <typename T>
double forward(const SwavProblem<T>& problem, int64_t row, T* scratch, T* lse, T* code_lse) {
  const RowSums<T> of = row_sums(problem, scratch);
  const int64_t high = problem.high, count = problem.count;
  const bool guessed = sum_row(problem, row, smaller(problem.columns, columns_for_shift), of);
  // The guess was too low for the rest of the row (or there is a NaN or an infinity, which stays).
  if (!guessed) sum_row(problem, row, problem.columns, of);
  for (int64_t index = 0; index < count + 2 * high; ++index) of.logarithms[index] = static_cast<T>(of.sums[index]);
  for (int64_t index = 0; index < count + high; index += Vector<T>::lanes) {
    store(of.logarithms + index, logarithm2(load(of.logarithms + index)));
  }
  double all = 0;
  for (int64_t v = 0; v < count; ++v) {
    // Relative to the row's level, so that what all its scores have in common cancels. Backward finds the level again:
    // the maximum of the row's first scores or, for a number below 0, of all.
    const T relative = static_cast<T>(ln_2 * of.logarithms[v]);
    lse[v * problem.rows + row] = guessed ? (relative < 0 ? T(0) : relative) : -1 - relative;
    all += ln_2 * of.logarithms[v];
  }
  double loss = 0;
  for (int64_t i = 0; i < high; ++i) {
    const double sum = of.sums[count + i], product = of.sums[count + high + i], shift = of.shifts[count + i];
    code_lse[i * problem.rows + row] = static_cast<T>(ln_2 * (shift + of.logarithms[count + i]));
    const double scale = problem.normalised ? 1 / sum : __builtin_exp2(shift);
    const double own = ln_2 * of.logarithms[i];
    loss += sum * scale * (all - own) - product * scale / problem.temperature;
  }
  return loss;
}

template <typename T>
void backward(const SwavProblem<T>& problem, int64_t row, const T* lse, const T* code_lse, T factor, T* scratch,
              T* gradient) {
  using V = typename Vector<T>::type;
  const int64_t high = problem.high;
  double mass = 0;  // what the codes of one row sum to, all together
  for (int64_t i = 0; i < high; ++i) mass += problem.normalised ? 1 : __builtin_exp(code_lse[i * problem.rows + row]);
  for (int64_t begin = 0; begin < problem.columns; begin += columns_per_sum) {
    const int64_t columns = smaller(columns_per_sum, problem.columns - begin);
    for (int64_t i = 0; i < high; ++i) {
      const T* scores = problem.views[i] + row * problem.columns + begin;
      const T* potential = problem.potential + i * problem.width + begin;
      T* codes = scratch + i * columns_per_sum;
      const T level = problem.normalised ? static_cast<T>(code_lse[i * problem.rows + row] * log2_e) : T(0);
      each_vector<T>(0, columns, [&](int64_t k, int64_t lanes) {
        const V exponent = (exponents_at(scores + k, lanes, problem.code_scale) - load(potential + k)) - level;
        store(codes + k, exponential2(problem.normalised ? at_most_zero(exponent) : exponent) * factor);
      });
    }
    for (int64_t v = 0; v < problem.count; ++v) {
      const int64_t place = (v * problem.rows + row) * problem.columns + begin;
      const T* scores = problem.views[v] + row * problem.columns + begin;
      double others = mass;
      if (v < high) others -= problem.normalised ? 1 : __builtin_exp(code_lse[v * problem.rows + row]);
      const T scale = static_cast<T>(others * factor);
      const T stored = lse[v * problem.rows + row];
      const bool guessed = !(stored < 0);
      const T level = static_cast<T>((guessed ? stored : -1 - stored) * log2_e);
      const T known = level_of(problem.views[v] + row * problem.columns,
                               guessed ? smaller(problem.columns, columns_for_shift) : problem.columns);
      const Chunk after = chunk_after(problem, row, begin, v);
      const T* next = problem.views[after.view] + after.place;
      const auto gradient_at = [&](int64_t k, int64_t lanes) {
        __builtin_prefetch(next + k);
        V result =
            exponential2(at_most_zero((scores_at(scores + k, lanes) - known) * problem.view_scale - level)) * scale;
        for (int64_t i = 0; i < high; ++i) {
          if (i != v) result -= load(scratch + i * columns_per_sum + k);
        }
        return result;
      };
      T* target = gradient + place;
      if (problem.streamed) {
        const int64_t head = smaller(columns_before_line(target), columns);
        if (head > 0) store_part(target, head, gradient_at(0, head));
        each_vector<T>(head, columns,
                       [&](int64_t k, int64_t lanes) { stream_at(target + k, gradient_at(k, lanes), lanes); });
      } else {
        each_vector<T>(0, columns,
                       [&](int64_t k, int64_t lanes) { store_at(target + k, gradient_at(k, lanes), lanes); });
      }
    }
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
SwavKernels<T> swav_kernels() {
  return {&scratch<T>, &forward<T>, &backward<T>};
}

template SwavKernels<float> swav_kernels<float>();
template SwavKernels<double> swav_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
