/* harp's C API: the calls of llama.h that touch the forward pass, with HARP in them.
 *
 * Each harp_X has the signature and the meaning of llama_X. A handle made by harp_init_from_model has HARP on, unless
 * harp_set_default_params switched it off. With any other llama_context (a draft model, embeddings) each call here does
 * what its llama_ namesake does, at the same speed. The calls of llama.h that are not listed here take HARP handles
 * unchanged. See examples/simple.cpp.
 *
 * No call throws an exception. A call that fails (a sequence id out of range, no memory, an observer that throws)
 * returns the value that stands for failure: false, 0, NULL, a position of -1, LLAMA_TOKEN_NULL, or a code of
 * harp_decode. The reason is in harp_last_error(), also for calls that return nothing.
 *
 * To port a program: include harp/harp.h after llama.h and rename the calls, or include harp/drop_in.h, which renames
 * them by macros.
 */
#ifndef HARP_H
#define HARP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

enum harp_gate { HARP_GATE_ENTROPY, HARP_GATE_RATIO };
enum harp_view { HARP_VIEW_PERTURBED, HARP_VIEW_MASKED, HARP_VIEW_GUIDANCE, HARP_VIEW_LAST };
enum harp_perturbation { HARP_PERTURBATION_DROPOUT, HARP_PERTURBATION_UNIFORM, HARP_PERTURBATION_GAUSSIAN };
enum harp_schedule { HARP_SCHEDULE_AUTO, HARP_SCHEDULE_FUSED, HARP_SCHEDULE_LAZY };
enum harp_scope { HARP_SCOPE_ALL, HARP_SCOPE_GENERATED };

/* The options of HARP. harp/options.h and docs/OPTIONS.md say what they do and which values are allowed. */
struct harp_params {
    enum harp_gate gate;                 /* default entropy */
    double threshold;                    /* bits or ratio, >= 0, may be INFINITY; default 1.0 */
    float beta;                          /* 0..8: up to 1 the vanilla logits' share, above 1 contrast; default 0.5 */
    float plausibility;                  /* 0..1, of contrast; default 0 */
    enum harp_view view;                 /* default perturbed */
    uint32_t view_tokens;                /* for HARP_VIEW_LAST, >= 1; default 10 */
    enum harp_perturbation perturbation; /* default dropout */
    float strength;                      /* dropout 0..1, uniform > 0, gaussian > 0; default 0.2 */
    uint32_t reframings;                 /* 1..8; default 1 */
    enum harp_schedule schedule;         /* default auto */
    uint32_t redraw;                     /* 0 never, 1 each hesitation (the paper), N; default 0 */
    enum harp_scope scope;               /* default all */
    uint64_t seed;                       /* of the masks; default 0 */
};

/* What happened at one output row. */
struct harp_step {
    double entropy; /* of the vanilla distribution, bits */
    double ratio;   /* second greatest probability / greatest, of the vanilla distribution */
    bool hesitated; /* entropy > threshold, or ratio > threshold, by the gate */
};

/* The authors' defaults. */
struct harp_params harp_default_params(void);

/* Parameters of the contexts that harp_init_from_model creates from now on; NULL: HARP off. Before the first call they
 * are harp_default_params(). @return false, with harp_last_error(), if a value is out of range. */
bool harp_set_default_params(const struct harp_params * params);

/* Tokens that each second pass has room for in the contexts that harp_init_from_model creates from now on; 0, the value
 * before the first call: as many as the sequence. Saves memory with HARP_VIEW_GUIDANCE, HARP_VIEW_LAST and
 * HARP_SCOPE_GENERATED; no sequence can have parameters that need more. Above 0 the context has to be for one sequence,
 * or with kv_unified. */
void harp_set_default_n_ctx_twin(uint32_t n_ctx_twin);

/* Parameters of one sequence from now on. @return false, with harp_last_error(), if a value is out of range, reframings
 * exceeds what the context was created with, or HARP is off for the handle. */
bool harp_set_sequence_params(struct llama_context * ctx, llama_seq_id seq_id, struct harp_params params);

/* The record of row i of the last batch, indexed as in llama_get_logits_ith. @return false if it is not an output row
 * or HARP is off for the handle. */
bool harp_get_step(struct llama_context * ctx, int32_t i, struct harp_step * step);

/* What HARP_VIEW_GUIDANCE reads instead of the sequence's prompt from now on; no tokens: only the prompt's last token.
 * @return false, with harp_last_error(), if a token is out of range, there are too many, or HARP is off for it. */
bool harp_set_negative_prompt(struct llama_context * ctx, llama_seq_id seq_id, const llama_token * tokens,
                              size_t n_tokens);

/* Tokens at positions below `end` are prompt, including those already decoded. They stay clean under
 * HARP_SCOPE_GENERATED, HARP_VIEW_GUIDANCE does not read them, and their hesitations do not count for redraw. No-op if
 * HARP is off for the handle. */
void harp_set_prompt_end(struct llama_context * ctx, llama_seq_id seq_id, llama_pos end);

/* Why the last call of this thread failed; "" if none did. Valid until the thread's next harp call. */
const char * harp_last_error(void);

/* --- context. NULL on failure, with harp_last_error(). harp_free takes any llama_context. */
struct llama_context * harp_init_from_model(struct llama_model * model, struct llama_context_params params);
void harp_free(struct llama_context * ctx);
uint32_t harp_n_ctx(const struct llama_context * ctx);
uint32_t harp_n_ctx_seq(const struct llama_context * ctx);
uint32_t harp_n_batch(const struct llama_context * ctx);
uint32_t harp_n_seq_max(const struct llama_context * ctx);

/* --- decoding. Return values as llama_decode: 0, 1 no KV slot, 2 aborted, -1 invalid batch, < -1 other failures.
 * Unlike llama_decode, with HARP on nothing of a failed batch stays in memory. */
int32_t harp_decode(struct llama_context * ctx, struct llama_batch batch);
int32_t harp_process(struct llama_context * ctx, enum llama_process_type type, struct llama_batch_ext * batch);
float * harp_get_logits(struct llama_context * ctx);
float * harp_get_logits_ith(struct llama_context * ctx, int32_t i);

/* --- memory. `mem` is llama_get_memory of the handle. */
void harp_memory_clear(llama_memory_t mem, bool data);
bool harp_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
void harp_memory_seq_cp(llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0,
                        llama_pos p1);
void harp_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id);
void harp_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta);
void harp_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d);
llama_pos harp_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id);
llama_pos harp_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);

/* --- state: the clean stream, the twins and their pending rows. 0 or false on failure. */
size_t harp_state_get_size(struct llama_context * ctx);
size_t harp_state_get_data(struct llama_context * ctx, uint8_t * dst, size_t size);
size_t harp_state_set_data(struct llama_context * ctx, const uint8_t * src, size_t size);
size_t harp_state_seq_get_size(struct llama_context * ctx, llama_seq_id seq_id);
size_t harp_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id);
size_t harp_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id);
size_t harp_state_seq_get_size_ext(struct llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags);
size_t harp_state_seq_get_data_ext(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id,
                                   llama_state_seq_flags flags);
size_t harp_state_seq_set_data_ext(struct llama_context * ctx, const uint8_t * src, size_t size,
                                   llama_seq_id dest_seq_id, llama_state_seq_flags flags);
/* With HARP on the files have a format of their own, which holds the twins. Neither format is read as the other. */
bool harp_state_save_file(struct llama_context * ctx, const char * path_session, const llama_token * tokens,
                          size_t n_token_count);
bool harp_state_load_file(struct llama_context * ctx, const char * path_session, llama_token * tokens_out,
                          size_t n_token_capacity, size_t * n_token_count_out);
size_t harp_state_seq_save_file(struct llama_context * ctx, const char * filepath, llama_seq_id seq_id,
                                const llama_token * tokens, size_t n_token_count);
size_t harp_state_seq_load_file(struct llama_context * ctx, const char * filepath, llama_seq_id dest_seq_id,
                                llama_token * tokens_out, size_t n_token_capacity, size_t * n_token_count_out);

/* --- sampling, from the final logits. With HARP on no sampler can run in llama.cpp's graph, which comes before
 *     the mix: harp_set_sampler then returns false, and the caller samples as if there were no such samplers. */
llama_token harp_sampler_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);
bool harp_set_sampler(struct llama_context * ctx, llama_seq_id seq_id, struct llama_sampler * smpl);

#ifdef __cplusplus
}
#endif

#endif /* HARP_H */
