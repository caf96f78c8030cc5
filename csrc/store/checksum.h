// CRC-32 of zlib, fast.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sslfast::store {

// As zlib's crc32(value, data, size): value is what came out for the bytes before.
std::uint32_t crc32(std::uint32_t value, const unsigned char* data, std::size_t size);

}  // namespace sslfast::store
