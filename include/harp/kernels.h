/* harp's kernels for the CPU (docs/KERNELS.md), matrix multiplication with quantised weights and attention: one to eight
 * rows for little more than the price of one, and faster prompts where there is AMX.
 *
 * A library of its own: link harp::kernels. It works with HARP and without, with handles of harp.h and of llama.h.
 */
#ifndef HARP_KERNELS_H
#define HARP_KERNELS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Says whether models that are loaded from now on use our kernels; those that were loaded keep what they have. The
 * first call, on or off, must come before the first model is loaded: then llama.cpp asks, once, who can multiply.
 * Thread-safe.
 *
 * Weights of the types Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4 use them, with rows in
 * multiples of 8, experts of mixtures too. So does the attention of these models, with a cache in f16. Logits differ from llama.cpp's by the order and
 * precision of float additions, which a quantised model magnifies, and with AMX by the rounding of activations too.
 *
 * With GGML_BACKEND_DL the back ends are loaded by this call if they are not yet (ggml_backend_load_all).
 *
 * @return whether models will use them: false too where the processor has neither AVX2 nor AVX-512 VNNI, or the CPU back end that
 * was loaded has no place for them (of a build without our patches) */
bool harp_set_kernels(bool is_enabled);

/* Chooses the instructions of the kernels: "avx2", "vnni" (AVX-512 VNNI) or "amx" (few tokens as "vnni"), for all models and
 * from the next decode on; by default the last of these that the processor has. Not while a model decodes.
 *
 * @return false, and nothing changes, for another name or what this processor lacks */
bool harp_set_kernel_instructions(const char * name);

/* The instructions that models use with harp_set_kernels(true): one of those names, or "none" where it is false. */
const char * harp_kernel_instructions(void);

#ifdef __cplusplus
}
#endif

#endif
