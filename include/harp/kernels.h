/* harp's CPU kernels (docs/CPU.md): matrix multiplication with quantised weights, and attention. A batch of one to
 * eight rows costs little more than one row, and with AMX prompts are faster too.
 *
 * A library of its own: link harp::kernels. It works with and without HARP, with handles of harp.h and of llama.h.
 */
#ifndef HARP_KERNELS_H
#define HARP_KERNELS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sets whether models loaded from now on use our kernels; models already loaded do not change. The first call, with
 * true or false, must come before the first model is loaded, because only then does llama.cpp ask which back ends can
 * multiply. Thread-safe.
 *
 * Supported weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4, with a multiple of 8
 * rows, including the experts of mixtures. The attention of these models is ours too, with a cache in f16. Logits
 * differ from llama.cpp's in the order and precision of float additions, which a quantised model magnifies, and with
 * AMX also in the rounding of activations.
 *
 * With GGML_BACKEND_DL this call loads the back ends if they are not loaded yet (ggml_backend_load_all).
 *
 * @return whether models will use the kernels. Also false if the processor has neither AVX2 nor AVX-512 VNNI, or if the
 * loaded CPU back end does not let them in (one built without our patches) */
bool harp_set_kernels(bool is_enabled);

/* Chooses the instructions of the kernels for all models, from the next decode on: "avx2", "vnni" (AVX-512 VNNI) or
 * "amx" (which treats few tokens like "vnni"). The default is the last of these that the processor has. Not to be
 * called while a model decodes.
 *
 * @return false, changing nothing, for any other name or for instructions that this processor lacks */
bool harp_set_kernel_instructions(const char * name);

/* The instructions that models use with the kernels on: one of those names, or "none" where harp_set_kernels(true) is
 * false. */
const char * harp_kernel_instructions(void);

#ifdef __cplusplus
}
#endif

#endif
