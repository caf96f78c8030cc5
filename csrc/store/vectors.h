// Which vectors the engine uses.
#pragma once

namespace sslfast::store {

// 512, 256 or 128 (or none): the widest that the processor has what is needed for, up to the limit.
int vector_bits();
// Sets the limit; 0 leaves it. For tests.
void limit_vectors(int bits);

}  // namespace sslfast::store
