// The passes of Sinkhorn-Knopp over rows of scores, compiled once per capability. No std:: templates here: an inline
// function that is compiled with wider vectors must not be the copy that the linker keeps for everybody.
#include "sinkhorn_rows.h"

#include "sslfast/score_rows.h"

namespace sslfast {
namespace {

// So far ahead of a row is fetched what comes next in memory: more than the processor does at a page's end.
constexpr int64_t numbers_ahead = 1024;

template <typename T>
void guess_shift(const ScoreRows<T>& scores, int64_t begin, int64_t end, T* shift) {
  const int64_t rows = smaller(scores.rows, rows_for_shift);
  each_vector<T>(begin, end, [&](int64_t k, int64_t count) {
    auto best = splat(lowest<T>);
    for (int64_t row = 0; row < rows; ++row) {
      const auto next = exponents_at(scores.scores + row * scores.columns + k, count, scores.scale);
      best = next > best ? next : best;
    }
    store(shift + k, best);
  });
}

template <typename T>
inline typename Vector<T>::type total_at(const T* sums, int64_t count, int64_t width) {
  typedef double Wide __attribute__((vector_size(Vector<T>::lanes * sizeof(double))));
  Wide total{};
  for (int64_t block = 0; block < count; ++block) total += __builtin_convertvector(load(sums + block * width), Wide);
  return __builtin_convertvector(total, typename Vector<T>::type);
}

template <typename T>
void add(const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end, T* total) {
  each_vector<T>(begin, end,
                 [&](int64_t k, int64_t lanes) { store_at(total + k, total_at(sums + k, count, width), lanes); });
}

template <typename T>
void add_logarithm(const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end, T* potential) {
  each_vector<T>(begin, end, [&](int64_t k, int64_t lanes) {
    // A sum of finite exponents vanishes only where rounding is worth more than float32 holds, in scores of 1e8: then
    // any number will do. That of a prototype for nobody is 0.
    const auto before = load(potential + k);
    const auto total = total_at(sums + k, count, width);
    const auto least = before > splat(lowest<T>) ? splat(smallest<T>) : typename Vector<T>::type{};
    store_at(potential + k, before + logarithm2(total < least ? least : total), lanes);
  });
}

template <typename T>
void add_scaled(const T* highest, const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end,
                T* potential) {
  using V = typename Vector<T>::type;
  each_vector<T>(begin, end, [&](int64_t k, int64_t lanes) {
    V most = splat(lowest<T>);
    for (int64_t block = 0; block < count; ++block) {
      const V next = load(highest + block * width + k);
      most = next > most ? next : most;
    }
    V total{};
    for (int64_t block = 0; block < count; ++block) {
      total += load(sums + block * width + k) * exponential2(load(highest + block * width + k) - most);
    }
    store_at(potential + k, most + logarithm2(total), lanes);
  });
}

template <int group, typename T>
inline void add_shifted(const ScoreRows<T>& block, int64_t first, const T* shift, T* sums) {
  const T* scores = block.scores + first * block.columns;
  each_vector<T>(0, block.columns, [&](int64_t k, int64_t count) {
    const auto own_shift = load(shift + k);
    auto sum = load(sums + k);
    const int64_t later = k + numbers_ahead;
    const T* ahead = scores + (later < block.columns ? later : later + (group - 1) * block.columns);
#pragma GCC unroll 4
    for (int row = 0; row < group; ++row) {
      __builtin_prefetch(ahead + row * block.columns);
      sum += exponential2(exponents_at(scores + row * block.columns + k, count, block.scale) - own_shift);
    }
    store(sums + k, sum);
  });
}

template <typename T>
bool shifted_column_sums(const ScoreRows<T>& block, const T* shift, T* sums) {
  each_vector<T>(0, block.columns, [&](int64_t k, int64_t) { store(sums + k, typename Vector<T>::type{}); });
  int64_t row = 0;
  for (; row + 4 <= block.rows; row += 4) add_shifted<4>(block, row, shift, sums);
  for (; row < block.rows; ++row) add_shifted<1>(block, row, shift, sums);
  typename Vector<T>::type most{};
  each_vector<T>(0, block.columns, [&](int64_t k, int64_t) {
    const auto sum = load(sums + k);
    most = sum > most ? sum : most;
  });
  return highest_of<T>(most) < largest_sum;
}

template <typename T>
void column_sums(const ScoreRows<T>& block, T* highest, T* sums) {
  using V = typename Vector<T>::type;
  constexpr int group = 8;
  each_vector<T>(0, block.columns, [&](int64_t k, int64_t count) {
    V best = splat(lowest<T>);
    V sum{};
    for (int64_t first = 0; first < block.rows; first += group) {
      const int64_t rows = smaller(group, block.rows - first);
      V values[group];
      V next = best;
      for (int64_t row = 0; row < rows; ++row) {
        values[row] = rounded_exponents_at(block.scores + (first + row) * block.columns + k, count, block.scale);
        next = values[row] > next ? values[row] : next;
      }
      sum *= exponential2(best - next);
      for (int64_t row = 0; row < rows; ++row) sum += exponential2(values[row] - next);
      best = next;
    }
    store(highest + k, best);
    store(sums + k, sum);
  });
}

// What happens to a row of exponentials when its sum is known, while the next row's take its place.
struct Nothing {
  template <typename V>
  void operator()(int64_t, int64_t, V) const {}
};

template <typename T>
struct AddToSums {
  T* sums;
  T factor;
  template <typename V>
  void operator()(int64_t k, int64_t, V value) const {
    store(sums + k, load(sums + k) + value * factor);
  }
};

template <typename T>
struct WriteRow {
  T* target;
  T factor;
  template <typename V>
  void operator()(int64_t k, int64_t count, V value) const {
    store_at(target + k, value * factor, count);
  }
};

// As WriteRow, past the caches.
template <typename T>
struct StreamRow {
  T* target;
  T factor;
  template <typename V>
  void operator()(int64_t k, int64_t count, V value) const {
    stream_at(target + k, value * factor, count);
  }
};

template <typename Former>
inline int64_t head_of(const Former&, int64_t) {
  return 0;
}
template <typename T>
inline int64_t head_of(const StreamRow<T>& former, int64_t columns) {
  return smaller(columns_before_line(former.target), columns);
}

template <typename T, typename Former>
inline void flush(int64_t columns, const T* row, const Former& former) {
  const int64_t head = head_of(former, columns);
  if (head > 0) former(0, head, load(row));
  each_vector<T>(head, columns, [&](int64_t k, int64_t count) { former(k, count, load(row + k)); });
}

// Writes 2^(t_k - potential_k - shift) into `row` and returns the sum, after handing what stood there to `former`.
template <typename T, typename Former>
inline double exponentiate(const T* scores, int64_t columns, T scale, const T* potential, T shift, T* row,
                           const Former& former) {
  using V = typename Vector<T>::type;
  const auto step = [&](int64_t k, int64_t count) {
    __builtin_prefetch(scores + k + numbers_ahead);
    const V before = load(row + k);
    const V value = exponential2((exponents_at(scores + k, count, scale) - load(potential + k)) - shift);
    store_at(row + k, value, count);
    former(k, count, before);
    return value;
  };
  const int64_t head = head_of(former, columns);
  double total = head > 0 ? total_of<T>(step(0, head)) : 0;
  for (int64_t begin = head; begin < columns; begin += columns_per_sum) {
    V sum{};
    each_vector<T>(begin, smaller(columns, begin + columns_per_sum),
                   [&](int64_t k, int64_t count) { sum += step(k, count); });
    total += total_of<T>(sum);
  }
  return total;
}

// As above with a shift of its own; returns what turns the exponentials into probabilities.
template <typename T, typename Former>
inline T next_row(const ScoreRows<T>& block, int64_t index, const T* potential, T* row, const Former& former) {
  const T* scores = block.scores + index * block.columns;
  const int64_t first = smaller(block.columns, columns_for_shift);
  T shift = highest_exponent(scores, first, block.scale, potential);
  double total = exponentiate(scores, block.columns, block.scale, potential, shift, row, former);
  if (!(total < largest_sum)) {
    // The guess was too low for the rest of the row (or there is a NaN, which stays).
    shift = highest_exponent(scores, block.columns, block.scale, potential);
    total = exponentiate(scores, block.columns, block.scale, potential, shift, row, Nothing{});
  }
  return static_cast<T>(1 / total);
}

template <typename T>
void probability_sums(const ScoreRows<T>& block, const T* potential, T* row, T* sums) {
  each_vector<T>(0, block.columns, [&](int64_t k, int64_t) { store(sums + k, typename Vector<T>::type{}); });
  T factor = next_row(block, 0, potential, row, Nothing{});
  for (int64_t index = 1; index < block.rows; ++index) {
    factor = next_row(block, index, potential, row, AddToSums<T>{sums, factor});
  }
  flush(block.columns, row, AddToSums<T>{sums, factor});
}

template <template <typename> typename Write, typename T>
inline void write_probabilities(const ScoreRows<T>& block, const T* potential, T* row, T* result) {
  T factor = next_row(block, 0, potential, row, Nothing{});
  for (int64_t index = 1; index < block.rows; ++index) {
    factor = next_row(block, index, potential, row, Write<T>{result + (index - 1) * block.columns, factor});
  }
  flush(block.columns, row, Write<T>{result + (block.rows - 1) * block.columns, factor});
}

template <typename T>
void probabilities(const ScoreRows<T>& block, const T* potential, T* row, T* result, bool streamed) {
  if (streamed) {
    write_probabilities<StreamRow>(block, potential, row, result);
  } else {
    write_probabilities<WriteRow>(block, potential, row, result);
  }
}

template <typename T>
void exponentials(const ScoreRows<T>& block, const T* potential, T* result) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const T* scores = block.scores + row * block.columns;
    const WriteRow<T> write{result + row * block.columns, T(1)};
    each_vector<T>(0, block.columns, [&](int64_t k, int64_t count) {
      write(k, count, exponential2(exponents_at(scores + k, count, block.scale) - load(potential + k)));
    });
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
SinkhornKernels<T> sinkhorn_kernels() {
  return {&guess_shift<T>,   &shifted_column_sums<T>, &column_sums<T>,   &probability_sums<T>, &add<T>,
          &add_logarithm<T>, &add_scaled<T>,          &probabilities<T>, &exponentials<T>};
}

template SinkhornKernels<float> sinkhorn_kernels<float>();
template SinkhornKernels<double> sinkhorn_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
