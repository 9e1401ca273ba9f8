// The device that is not there: an H200 by its published figures, under a name that says so.
#pragma once
#include <cstddef>

namespace nullgpu {

constexpr const char* name = "null GPU, as an NVIDIA H200";
constexpr size_t memory_bytes = size_t{141} * 1000 * 1000 * 1000;
constexpr int major = 9, minor = 0, processors = 132, registers = 65536, l2_bytes = 60 << 20;
constexpr int shared_static = 49152, shared_most = 232448, shared_processor = 233472;

// Attributes have the same numbers for the runtime and the driver; what is not named is 1.
inline int attribute(int which) {
  switch (which) {
    case 1: return 1024;               // threads of a block
    case 5: return 2147483647;         // blocks along x
    case 6: case 7: return 65535;      // along y and z
    case 8: return shared_static;
    case 10: return 32;                // threads of a warp
    case 12: case 82: return registers;
    case 13: return 1980000;           // kHz
    case 16: return processors;
    case 36: return 3201000;           // kHz of the memory
    case 37: return 6144;              // bits of its bus
    case 38: return l2_bytes;
    case 39: return 2048;              // threads of a processor
    case 75: return major;
    case 76: return minor;
    case 81: return shared_processor;
    case 97: return shared_most;
    default: return 1;
  }
}

inline bool fits(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared) {
  return gx && gy && gz && gy <= 65535 && gz <= 65535 && bx && by && bz && bx * by * bz <= 1024 &&
         shared <= unsigned(shared_most);
}

}  // namespace nullgpu
