// Loops that the compiler writes out.
#pragma once

// Arrays stay in registers only if the compiler knows all their indices: loops over them are written out. Not for a sanitizer, whose
// checks would take minutes to compile, nor where registers are emulated.
#if defined(HARP_SANITIZED) || defined(HARP_EMULATE_VNNI)
#define HARP_UNROLLED
#define HARP_FLATTEN
#else
#define HARP_UNROLLED _Pragma("GCC unroll 16")
#define HARP_FLATTEN [[gnu::flatten]]
#endif
