#pragma once
#include <cstdint>

namespace sslfast {

// How many steps hold `count`, and how far they reach.
inline int64_t divided_up(int64_t count, int64_t step) { return (count + step - 1) / step; }
inline int64_t rounded_up(int64_t count, int64_t step) { return divided_up(count, step) * step; }

}  // namespace sslfast
