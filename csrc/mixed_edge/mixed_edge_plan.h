#pragma once
// What a mixed edge consists of, and where its parts lie in memory.
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "mixed_edge.h"

namespace sslfast {

// A plane within a frame of zeros: four pieces on every side, those of neighbouring rows shared.
constexpr int64_t edge_frame = 4;
inline int64_t framed_columns(int64_t columns) { return columns + edge_frame; }
inline int64_t framed_pieces(int64_t rows, int64_t columns) {
  return (rows + 2 * edge_frame) * framed_columns(columns) + edge_frame;
}
// What the way back through pools of stride 1 needs.
inline int64_t collected_pieces(int64_t rows, int64_t columns) { return 3 * (rows + 2) * (columns + 2); }
inline int64_t frame_origin(int64_t columns) { return edge_frame * framed_columns(columns) + edge_frame; }

// A depthwise and a pointwise convolution and a batch normalisation. One half of a factorised reduce is one, too, whose
// depthwise convolution picks every second position, from `shift` on.
struct EdgeUnit {
  int64_t primitive;  // its place on the edge
  int64_t size, dilation, stride, shift;
  int64_t input;                 // the unit whose positive part it convolves; -1: that of the edge's input
  int64_t next;                  // the unit that takes its output; -1: the edge's output
  int64_t norm, first, outputs;  // the batch normalisation, and which of its channels it makes
  int64_t depthwise, pointwise;  // places of its weights; no depthwise one: -1
};

struct EdgePool {
  int64_t primitive, norm;
  bool largest;
};

struct EdgePlan {
  int64_t batch, channels, k, c, rows, columns, stride, inner_rows, inner_columns, groups;
  int64_t primitives;
  int64_t norms = 0, weights = 0, skip = -1;  // skip: the place of an identity
  std::vector<EdgeUnit> units;
  std::vector<EdgePool> pools;
  std::vector<int64_t> weight_sizes;

  EdgePlan(const int64_t* shape, int64_t lanes, int64_t k, int64_t stride, const std::vector<int64_t>& names);

  int64_t positions() const { return rows * columns; }
  int64_t inner() const { return inner_rows * inner_columns; }
  double numbers() const { return static_cast<double>(batch) * static_cast<double>(inner()); }  // a norm's
  // Every so many positions of a plane are enough to guess its mean.
  int64_t sample_step() const { return (inner() + 63) / 64; }
  int64_t samples() const { return (inner() + sample_step() - 1) / sample_step(); }
  int64_t images(int64_t group, int64_t lanes) const { return group + 1 < groups ? lanes : batch - group * lanes; }
};

// Where the parts of what the forward pass keeps lie: per unit the means of its depthwise outputs and their
// covariances; then planes, group by group: the input, depthwise outputs, pools.
template <typename T>
struct EdgeSaved {
  const EdgePlan& plan;
  T* data;

  T* centre(int64_t unit) const { return data + unit * (plan.c + plan.c * plan.c); }
  T* covariance(int64_t unit) const { return centre(unit) + plan.c; }
  T* input(int64_t group, int64_t channel) const {
    return planes() + (group * plan.c + channel) * plan.positions() * edge_lanes<T>;
  }
  T* unit(int64_t unit, int64_t group, int64_t channel) const { return inner_plane(unit, group, channel); }
  T* pool(int64_t pool, int64_t group, int64_t channel) const {
    return inner_plane(static_cast<int64_t>(plan.units.size()) + pool, group, channel);
  }
  int64_t size() const {
    const int64_t units = static_cast<int64_t>(plan.units.size()), pools = static_cast<int64_t>(plan.pools.size());
    const int64_t pieces = plan.groups * plan.c * (plan.positions() + (units + pools) * plan.inner());
    return units * (plan.c + plan.c * plan.c) + pieces * edge_lanes<T>;
  }

 private:
  T* planes() const { return centre(static_cast<int64_t>(plan.units.size())); }
  T* inner_plane(int64_t which, int64_t group, int64_t channel) const {
    T* first = planes() + plan.groups * plan.c * plan.positions() * edge_lanes<T>;
    return first + ((which * plan.groups + group) * plan.c + channel) * plan.inner() * edge_lanes<T>;
  }
};

// A thread's own memory, which it keeps: given back and asked for again, it would cost page faults in every pass.
class EdgeScratch {
 public:
  EdgeScratch() = default;
  EdgeScratch(const EdgeScratch&) = delete;
  ~EdgeScratch();
  void* at_least(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};
EdgeScratch& edge_scratch();

// Cuts a thread's scratch memory to pieces; it is as large as the largest use of it before.
template <typename T>
class EdgeArena {
 public:
  explicit EdgeArena(int64_t pieces)
      : next_(static_cast<T*>(edge_scratch().at_least(static_cast<size_t>(pieces) * 64))),
        end_(next_ + pieces * edge_lanes<T>) {}
  T* take(int64_t pieces) {
    T* taken = next_;
    next_ += pieces * edge_lanes<T>;
    if (next_ > end_) throw std::bad_alloc();
    return taken;
  }
  // Planes within frames; their origins.
  std::vector<T*> frames(int64_t count, int64_t rows, int64_t columns) {
    std::vector<T*> origins;
    for (int64_t i = 0; i < count; ++i) {
      T* plane = take(framed_pieces(rows, columns));
      T* origin = plane + frame_origin(columns) * edge_lanes<T>;
      T* from = plane;
      for (int64_t y = 0; y <= rows; ++y) {  // what is between the rows
        T* row = y < rows ? origin + y * framed_columns(columns) * edge_lanes<T>
                          : plane + framed_pieces(rows, columns) * edge_lanes<T>;
        for (; from < row; ++from) *from = 0;
        from = row + columns * edge_lanes<T>;
      }
      origins.push_back(origin);
    }
    return origins;
  }
  std::vector<T*> planes(int64_t count, int64_t positions) {
    std::vector<T*> result;
    for (int64_t i = 0; i < count; ++i) result.push_back(take(positions));
    return result;
  }

 private:
  T* next_;
  T* end_;
};

// Calls step(height, width, stride, window) for every window that makes a unit's depthwise convolution: two dilated
// rows of phases are two convolutions without a dilation.
template <typename T, typename Step>
void each_window(const EdgeUnit& unit, const T* origin, int64_t framed, T* plane, int64_t plane_columns, int64_t rows,
                 int64_t columns, const Step& step) {
  constexpr int64_t L = edge_lanes<T>;
  const int64_t row = plane_columns * L, d = unit.dilation, padding = d * (unit.size - 1) / 2;
  if (unit.size == 1) {
    step(1, 1, 1,
         EdgeWindow<T>{origin + unit.shift * (framed + 1) * L, 2 * framed * L, 2 * L, plane, row, L, rows, columns});
    return;
  }
  const T* taps = origin - padding * (framed + 1) * L;
  if (unit.stride == 2) {
    step(unit.size, unit.size, 2 / d, EdgeWindow<T>{taps, d * framed * L, d * L, plane, row, L, rows, columns});
    return;
  }
  for (int64_t y = 0; y < d; ++y) {
    for (int64_t x = 0; x < d; ++x) {
      step(unit.size, unit.size, 1,
           EdgeWindow<T>{taps + (y * framed + x) * L, d * framed * L, d * L, plane + y * row + x * L, d * row, d * L,
                         (rows - y + d - 1) / d, (columns - x + d - 1) / d});
    }
  }
}

// The same for the way back: step(height, width, window, weights) adds the taps (a framed gradient of the depthwise
// output) to the plane (the gradient of its input, of rows x columns).
template <typename T, typename Step>
void each_window_back(const EdgeUnit& unit, const T* weights, const T* origin, int64_t framed, T* plane, int64_t rows,
                      int64_t columns, const Step& step) {
  constexpr int64_t L = edge_lanes<T>;
  const int64_t row = columns * L, d = unit.dilation, size = unit.size, padding = d * (size - 1) / 2;
  if (size == 1) {
    const T one = 1;
    T* first = plane + unit.shift * (columns + 1) * L;
    step(1, 1,
         EdgeWindow<T>{origin, framed * L, L, first, 2 * row, 2 * L, (rows - unit.shift + 1) / 2,
                       (columns - unit.shift + 1) / 2},
         &one);
    return;
  }
  T own[25];
  if (unit.stride == 1) {
    for (int64_t i = 0; i < size * size; ++i) own[i] = weights[size * size - 1 - i];
    const T* taps = origin - padding * (framed + 1) * L;
    for (int64_t y = 0; y < d; ++y) {
      for (int64_t x = 0; x < d; ++x) {
        step(size, size,
             EdgeWindow<T>{taps + (y * framed + x) * L, d * framed * L, d * L, plane + y * row + x * L, d * row, d * L,
                           (rows - y + d - 1) / d, (columns - x + d - 1) / d},
             own);
      }
    }
    return;
  }
  // Positions of one parity (with dilation: even ones, the others have no gradient) meet every second weight.
  for (int64_t y = 0; y < (d == 2 ? 1 : 2); ++y) {
    for (int64_t x = 0; x < (d == 2 ? 1 : 2); ++x) {
      const int64_t step_of = d == 2 ? 1 : 2;
      const int64_t first_y = d == 2 ? 0 : (y + padding) % 2, first_x = d == 2 ? 0 : (x + padding) % 2;
      const int64_t height = (size - first_y + step_of - 1) / step_of, width = (size - first_x + step_of - 1) / step_of;
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          own[i * width + j] =
              weights[(first_y + step_of * (height - 1 - i)) * size + first_x + step_of * (width - 1 - j)];
        }
      }
      const int64_t up = (y + padding - d * first_y) / 2 - (height - 1);
      const int64_t left = (x + padding - d * first_x) / 2 - (width - 1);
      step(height, width,
           EdgeWindow<T>{origin + (up * framed + left) * L, framed * L, L, plane + y * row + x * L, 2 * row, 2 * L,
                         (rows - y + 1) / 2, (columns - x + 1) / 2},
           own);
    }
  }
}

}  // namespace sslfast
