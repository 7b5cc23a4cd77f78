// Loops that the compiler writes out.
#pragma once

// Arrays stay in registers only if the compiler knows all their indices: loops over them are written out. Not for a sanitizer, whose
// checks would take minutes to compile.
#if defined(HARP_SANITIZED)
#define HARP_UNROLLED
#define HARP_FLATTEN
#else
#define HARP_UNROLLED _Pragma("GCC unroll 8")
#define HARP_FLATTEN [[gnu::flatten]]
#endif
