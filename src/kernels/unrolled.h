// Loops that the compiler must unroll.
#pragma once

// Arrays stay in registers only if the compiler knows all their indices, so loops over them are unrolled. Not with
// sanitizers, whose checks would take minutes to compile, and not with emulated instructions.
#if defined(HARP_SANITIZED) || defined(HARP_EMULATE_VNNI)
#define HARP_UNROLLED
#define HARP_FLATTEN
#else
#define HARP_UNROLLED _Pragma("GCC unroll 16")
#define HARP_FLATTEN [[gnu::flatten]]
#endif
