// One augmented view, compiled once per capability (no std:: templates: see nt_xent_tiles.cpp).
//
// The crop is resized as PyTorch's antialiased bilinear interpolation does it: each output row is a blend of rows of
// the crop, made straight from the bytes; each output column a blend of columns of that. Flips are only another order
// of the blends. What follows works on the finished view, which is in the first-level cache.
#include "sslfast/vector.h"
#include "views.h"
#if SSLFAST_VECTOR_BITS == 256
#include <immintrin.h>
#endif

namespace sslfast {
namespace {

using V = Vector<float>::type;
using Index = Vector<float>::labels;
constexpr int64_t lanes = Vector<float>::lanes;

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t padded(int64_t count) { return (count + view_padding - 1) / view_padding * view_padding; }

inline V load_bytes(const uint8_t* from) {
#if SSLFAST_VECTOR_BITS == 512
  const __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm512_maskz_cvtepi32_ps(0xffff, wide);
#elif SSLFAST_VECTOR_BITS == 256
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  V value{};
  for (int lane = 0; lane < lanes; ++lane) value[lane] = static_cast<float>(from[lane]);
  return value;
#endif
}

// Interleaved pixels as three planes.
void split_colours(const float* from, int64_t count, float* red, float* green, float* blue) {
  int64_t k = 0;
#if SSLFAST_VECTOR_BITS == 512
  // The first ten or eleven pixels of a colour come from the first two vectors, the others from the third.
  for (; k + lanes <= count; k += lanes) {
    const V a = load(from + 3 * k), b = load(from + 3 * k + 16), c = load(from + 3 * k + 32);
    const Index red_ab{0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0};
    const Index red_c{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29};
    const Index green_ab{1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0};
    const Index green_c{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30};
    const Index blue_ab{2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0};
    const Index blue_c{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31};
    store(red + k, __builtin_shuffle(__builtin_shuffle(a, b, red_ab), c, red_c));
    store(green + k, __builtin_shuffle(__builtin_shuffle(a, b, green_ab), c, green_c));
    store(blue + k, __builtin_shuffle(__builtin_shuffle(a, b, blue_ab), c, blue_c));
  }
#endif
  for (; k < count; ++k) red[k] = from[3 * k], green[k] = from[3 * k + 1], blue[k] = from[3 * k + 2];
}

inline V between(V x, V low, V high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// Where the pixels begin that output i of an axis is made of, and their weights; returns how many at most. PyTorch's
// rule (aten/src/ATen/native/cpu/UpSampleKernel.cpp), in its precision.
template <typename Put>
int64_t resize_axis(int64_t in, int64_t out, bool reversed, int64_t taps, int32_t* start, const Put& put) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  const float support = scale > 1.0f ? scale : 1.0f;
  const float inverse = 1.0f / support;
  int64_t most = 1;
  for (int64_t i = 0; i < out; ++i) {
    const float centre = scale * (static_cast<float>(reversed ? out - 1 - i : i) + 0.5f);
    const int64_t first = at_least(static_cast<int64_t>(centre - support + 0.5f), 0);
    const int64_t count =
        at_least(at_most(at_most(static_cast<int64_t>(centre + support + 0.5f), in) - first, taps), 1);
    float total = 0;
    for (int64_t tap = 0; tap < count; ++tap) {
      const float distance = (static_cast<float>(tap + first) - centre + 0.5f) * inverse;
      const float weight = 1.0f - (distance < 0 ? -distance : distance);
      put(i, tap, weight > 0 ? weight : 0.0f);
      total += weight > 0 ? weight : 0.0f;
    }
    const float share = total > 0 ? 1.0f / total : 0.0f;
    for (int64_t tap = 0; tap < count; ++tap) {
      const float distance = (static_cast<float>(tap + first) - centre + 0.5f) * inverse;
      const float weight = 1.0f - (distance < 0 ? -distance : distance);
      put(i, tap, weight > 0 ? weight * share : 0.0f);
    }
    for (int64_t tap = count; tap < taps; ++tap) put(i, tap, 0.0f);
    start[i] = static_cast<int32_t>(first);
    most = at_least(most, count);
  }
  return most;
}

// to = sum of weight[t] * row t of bytes.
void blend_rows(const uint8_t* from, int64_t row, const float* weight, int64_t taps, int64_t count, float* to) {
  if (count < lanes) {
    for (int64_t k = 0; k < count; ++k) {
      float sum = 0;
      for (int64_t tap = 0; tap < taps; ++tap) sum += weight[tap] * static_cast<float>(from[tap * row + k]);
      to[k] = sum;
    }
    return;
  }
  for (int64_t k = 0; k < count; k += lanes) {
    const int64_t at = at_most(k, count - lanes);  // the last vector overlaps the one before
    V sum = load_bytes(from + at) * weight[0];
    for (int64_t tap = 1; tap < taps; ++tap) sum += load_bytes(from + tap * row + at) * weight[tap];
    store(to + at, sum);
  }
}

// One channel of one output row from the blended line; returns the sum of its pixels. Where the crop is not shrunk by
// much, the pixels that a vector of output columns is made of lie in two vectors, from `column_base` on: they are
// permuted, which is far faster than gathering them.
template <bool near>
float blend_columns(const float* line, int64_t taps, const ViewScratch& scratch, int64_t size, float* to) {
  const int64_t width = padded(size);
  V total{};
  for (int64_t x = 0; x < size; x += lanes) {
    Index index;
    __builtin_memcpy(&index, scratch.column_start + x, sizeof(index));
    const float* from = line + scratch.column_base[x / lanes];
    V sum{};
    if constexpr (near) {
      const V low = load(from), high = load(from + lanes);
      for (int64_t tap = 0; tap < taps; ++tap) {
        sum += __builtin_shuffle(low, high, index) * load(scratch.column_weight + tap * width + x);
        index += 1;
      }
    } else {
      for (int64_t tap = 0; tap < taps; ++tap) {
        V pixels{};
        for (int lane = 0; lane < lanes; ++lane) pixels[lane] = from[index[lane]];
        sum += pixels * load(scratch.column_weight + tap * width + x);
        index += 1;
      }
    }
    total += sum;
    if (x + lanes <= size) {
      store(to + x, sum);
    } else {
      store_part(to + x, size - x, sum);
    }
  }
  return sum_of<float>(total);
}

// Says where the pixels of each vector of columns begin, and whether they lie in two vectors.
bool find_bases(const ViewScratch& scratch, int64_t size, int64_t taps) {
  bool near = true;
  for (int64_t x = 0; x < size; x += lanes) {
    int32_t first = scratch.column_start[x], last = first;
    for (int64_t k = x; k < at_most(x + lanes, size); ++k) {
      const int32_t start = scratch.column_start[k];
      first = start < first ? start : first;
      last = start > last ? start : last;
    }
    scratch.column_base[x / lanes] = first;
    near = near && last - first + taps <= 2 * lanes;
    for (int64_t k = x; k < x + lanes; ++k) {
      if (k < size) {
        scratch.column_start[k] -= first;
      } else {
        scratch.column_start[k] = 0;
      }
    }
  }
  return near;
}

// Crop, resize, flips. Returns the mean grey of the view.
float resize(const View& view, const ViewScratch& scratch) {
  const int64_t size = view.size, area = size * size, width = padded(size);
  const bool grey = view.channel == 0, interleaved = view.column == 3;
  const int64_t planes = grey || interleaved ? 1 : 3;
  const int64_t step = interleaved ? 3 : 1;
  const int64_t plane = scratch.plane_length;
  for (int64_t k = 0; k < 3 * plane; ++k) scratch.line[k] = 0;
  const int64_t column_taps =
      resize_axis(view.box_width, size, view.flip, scratch.column_taps, scratch.column_start,
                  [&](int64_t x, int64_t tap, float weight) { scratch.column_weight[tap * width + x] = weight; });
  for (int64_t tap = 0; tap < scratch.column_taps; ++tap) {
    for (int64_t x = size; x < width; ++x) scratch.column_weight[tap * width + x] = 0;
  }
  const bool near = find_bases(scratch, size, column_taps);
  const int64_t row_taps = scratch.row_taps;
  resize_axis(view.box_height, size, view.vertical_flip, row_taps, scratch.row_start,
              [&](int64_t y, int64_t tap, float weight) { scratch.row_weight[y * row_taps + tap] = weight; });
  // The part of the box that is inside the image.
  const int64_t left = at_least(0, -view.left), right = at_most(view.box_width, view.width - view.left);
  const float luma[3] = {0.299f, 0.587f, 0.114f};
  float sum = 0;
  for (int64_t y = 0; y < size; ++y) {
    const int64_t first = view.top + scratch.row_start[y];
    const int64_t above = at_least(0, -first);
    int64_t taps = at_most(row_taps, view.height - first);
    const float* weight = scratch.row_weight + y * row_taps;
    while (taps > above && weight[taps - 1] == 0) --taps;
    float* out = view.out + y * size;
    if (taps <= above || right <= left) {
      for (int64_t channel = 0; channel < 3; ++channel) {
        for (int64_t x = 0; x < size; ++x) out[channel * area + x] = 0;
      }
      continue;
    }
    const uint8_t* from = view.image + (first + above) * view.row + (view.left + left) * view.column;
    for (int64_t channel = 0; channel < planes; ++channel) {
      float* to = interleaved ? scratch.mixed : scratch.line + channel * plane + left;
      blend_rows(from + channel * view.channel, view.row, weight + above, taps - above, (right - left) * step, to);
    }
    if (interleaved) {
      float* red = scratch.line + left;
      split_colours(scratch.mixed, right - left, red, red + plane, red + 2 * plane);
    }
    for (int64_t channel = 0; channel < 3; ++channel) {
      float* to = out + channel * area;
      if (grey && channel > 0) {
        for (int64_t x = 0; x < size; ++x) to[x] = out[x];
        continue;
      }
      const float* line = scratch.line + channel * plane;
      const float pixels = near ? blend_columns<true>(line, column_taps, scratch, size, to)
                                : blend_columns<false>(line, column_taps, scratch, size, to);
      sum += (grey ? 1.0f : luma[channel]) * pixels;
    }
  }
  return sum / static_cast<float>(area);
}

// b (g + c (x - g)), then saturation and hue, cut off and scaled to [0, 1].
void change_colours(const View& view, float grey) {
  const int64_t area = view.size * view.size;
  const float scale = view.brightness * view.contrast / 255.0f;
  const float shift = view.brightness * (1.0f - view.contrast) * grey / 255.0f;
  float m[9], bias[3];
  for (int row = 0; row < 3; ++row) {
    float of_grey = 0;
    for (int column = 0; column < 3; ++column) {
      m[row * 3 + column] = view.colour[row * 3 + column] * scale;
      of_grey += view.colour[row * 3 + column];
    }
    bias[row] = of_grey * shift;
  }
  float *red = view.out, *green = red + area, *blue = green + area;
  int64_t k = 0;
  const V low{}, high = splat(1.0f);
  for (; k + lanes <= area; k += lanes) {
    const V r = load(red + k), g = load(green + k), b = load(blue + k);
    store(red + k, between(r * m[0] + g * m[1] + b * m[2] + bias[0], low, high));
    store(green + k, between(r * m[3] + g * m[4] + b * m[5] + bias[1], low, high));
    store(blue + k, between(r * m[6] + g * m[7] + b * m[8] + bias[2], low, high));
  }
  for (; k < area; ++k) {
    const float r = red[k], g = green[k], b = blue[k];
    for (int row = 0; row < 3; ++row) {
      const float value = r * m[row * 3] + g * m[row * 3 + 1] + b * m[row * 3 + 2] + bias[row];
      view.out[row * area + k] = value < 0 ? 0 : value > 1 ? 1 : value;
    }
  }
}

// Bilinear, 0 outside.
void change_perspective(const View& view, float* copy) {
  const int64_t size = view.size, area = size * size;
  const float* p = view.perspective;
  for (int64_t k = 0; k < 3 * area; ++k) copy[k] = view.out[k];
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      const float u = static_cast<float>(x) + 0.5f, v = static_cast<float>(y) + 0.5f;
      const float below = p[6] * u + p[7] * v + 1.0f;
      const float column = (p[0] * u + p[1] * v + p[2]) / below - 0.5f;
      const float row = (p[3] * u + p[4] * v + p[5]) / below - 0.5f;
      float* out = view.out + y * size + x;
      // Also false for what is no number.
      if (!(column > -1.0f && row > -1.0f && column < static_cast<float>(size) && row < static_cast<float>(size))) {
        out[0] = out[area] = out[2 * area] = 0;
        continue;
      }
      const int64_t x0 = static_cast<int64_t>(column + 1.0f) - 1, y0 = static_cast<int64_t>(row + 1.0f) - 1;
      const float along = column - static_cast<float>(x0), down = row - static_cast<float>(y0);
      float sum[3] = {};
      for (int64_t corner = 0; corner < 4; ++corner) {
        const int64_t at_x = x0 + (corner & 1), at_y = y0 + (corner >> 1);
        if (at_x < 0 || at_y < 0 || at_x >= size || at_y >= size) continue;
        const float weight = (corner & 1 ? along : 1 - along) * (corner >> 1 ? down : 1 - down);
        for (int64_t channel = 0; channel < 3; ++channel) {
          sum[channel] += weight * copy[channel * area + at_y * size + at_x];
        }
      }
      for (int64_t channel = 0; channel < 3; ++channel) out[channel * area] = sum[channel];
    }
  }
}

// Reflected about the pixels at the border.
inline int64_t reflected(int64_t at, int64_t size) {
  if (at < 0) return -at;
  return at >= size ? 2 * (size - 1) - at : at;
}

// to = sum of window[t] * from[t * step + k].
void weigh(const float* from, const int64_t* place, const float* window, int64_t taps, int64_t count, float* to) {
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    V sum = load(from + place[0] + k) * window[0];
    for (int64_t tap = 1; tap < taps; ++tap) sum += load(from + place[tap] + k) * window[tap];
    store(to + k, sum);
  }
  for (; k < count; ++k) {
    float sum = 0;
    for (int64_t tap = 0; tap < taps; ++tap) sum += window[tap] * from[place[tap] + k];
    to[k] = sum;
  }
}

constexpr int64_t most_taps = 129;

void blur(const View& view, float* plane) {
  const int64_t size = view.size, radius = view.blur_radius, taps = 2 * radius + 1;
  if (size <= radius || taps > most_taps) return;
  float window[most_taps], total = 0;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float distance = static_cast<float>(tap - radius) / view.blur;
    window[tap] = __builtin_expf(-0.5f * distance * distance);
    total += window[tap];
  }
  for (int64_t tap = 0; tap < taps; ++tap) window[tap] /= total;
  int64_t place[most_taps];
  const int64_t length = size + 2 * radius;
  for (int64_t channel = 0; channel < 3; ++channel) {
    float* pixels = view.out + channel * size * size;
    for (int64_t y = 0; y < size; ++y) {
      for (int64_t tap = 0; tap < taps; ++tap) place[tap] = reflected(y + tap - radius, size) * size;
      float* line = plane + y * length + radius;
      weigh(pixels, place, window, taps, size, line);
      for (int64_t k = 1; k <= radius; ++k) {
        line[-k] = line[k];
        line[size - 1 + k] = line[size - 1 - k];
      }
    }
    for (int64_t tap = 0; tap < taps; ++tap) place[tap] = tap;
    for (int64_t y = 0; y < size; ++y) weigh(plane + y * length, place, window, taps, size, pixels + y * size);
  }
}

void render(const View& view, const ViewScratch& scratch) {
  const int64_t size = view.size, area = size * size;
  change_colours(view, resize(view, scratch));
  if (view.moved) change_perspective(view, scratch.plane);
  if (view.blur > 0) blur(view, scratch.plane);
  if (view.moved || view.blur > 0) {  // weights sum to 1 up to rounding
    for (int64_t k = 0; k < 3 * area; ++k) view.out[k] = view.out[k] > 1.0f ? 1.0f : view.out[k];
  }
  if (view.solarise) {
    for (int64_t k = 0; k < 3 * area; ++k) view.out[k] = view.out[k] >= 0.5f ? 1.0f - view.out[k] : view.out[k];
  }
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t y = view.erase[0]; y < view.erase[0] + view.erase[2]; ++y) {
      float* line = view.out + channel * area + y * size + view.erase[1];
      for (int64_t x = 0; x < view.erase[3]; ++x) line[x] = view.fill;
    }
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

RenderView view_renderer() { return &render; }

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
