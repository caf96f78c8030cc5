#include "mixed_edge_plan.h"

#include <cstdlib>

namespace sslfast {

EdgePlan::EdgePlan(const int64_t* shape, int64_t lanes, int64_t k, int64_t stride, const std::vector<int64_t>& names)
    : batch(shape[0]),
      channels(shape[1]),
      k(k),
      c(shape[1] / k),
      rows(shape[2]),
      columns(shape[3]),
      stride(stride),
      inner_rows((shape[2] + stride - 1) / stride),
      inner_columns((shape[3] + stride - 1) / stride),
      groups((shape[0] + lanes - 1) / lanes),
      primitives(static_cast<int64_t>(names.size())) {
  const auto convolution = [&](int64_t place, int64_t size, int64_t dilation, int64_t of_stride, int64_t input) {
    const int64_t index = static_cast<int64_t>(units.size());
    if (input >= 0) units[input].next = index;
    units.push_back({place, size, dilation, of_stride, 0, input, -1, norms++, 0, c, weights, weights + 1});
    weight_sizes.push_back(c * size * size);
    weight_sizes.push_back(c * c);
    weights += 2;
    return index;
  };
  for (size_t place = 0; place < names.size(); ++place) {
    const int64_t one = static_cast<int64_t>(place);
    switch (names[place]) {
      case 1:
      case 2:
        pools.push_back({one, norms++, names[place] == 1});
        break;
      case 3:
        if (stride == 1) {
          skip = one;
          break;
        }
        for (int64_t half = 0; half < 2; ++half) {
          units.push_back({one, 1, 1, 2, half, -1, -1, norms, half * (c / 2), c / 2, -1, weights++});
          weight_sizes.push_back(c / 2 * c);
        }
        ++norms;
        break;
      case 4:
      case 5: {
        const int64_t size = names[place] == 4 ? 3 : 5;
        convolution(one, size, 1, 1, convolution(one, size, 1, stride, -1));
        break;
      }
      case 6:
      case 7:
        convolution(one, names[place] == 6 ? 3 : 5, 2, stride, -1);
        break;
      default:
        break;
    }
  }
}

EdgeScratch::~EdgeScratch() { std::free(data_); }

void* EdgeScratch::at_least(size_t bytes) {
  if (bytes > bytes_) {
    std::free(data_);
    bytes_ = 0;
    data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (data_ == nullptr) throw std::bad_alloc();
    bytes_ = bytes;
  }
  return data_;
}

EdgeScratch& edge_scratch() {
  static thread_local EdgeScratch scratch;
  return scratch;
}

}  // namespace sslfast
