/* Compiles a program written for llama.h with HARP, without a change to its source: force-include this header.
 *
 * Renaming at compile time does not touch libllama's calls to itself; interposing symbols at load time would.
 * harp_init_from_model is renamed only if HARP_DROP_IN_CONTEXTS is defined: a library that creates contexts of its own
 * (draft models) should not have them hesitate.
 */
#ifndef HARP_DROP_IN_H
#define HARP_DROP_IN_H

#include "harp/harp.h"

#ifdef HARP_DROP_IN_CONTEXTS
#define llama_init_from_model harp_init_from_model
#endif
#define llama_free harp_free
/* llama-cpp.h's deleter now calls harp_free, a different definition, so it needs another name (one definition rule) */
#define llama_context_deleter harp_context_deleter
#define llama_n_ctx harp_n_ctx
#define llama_n_ctx_seq harp_n_ctx_seq
#define llama_n_batch harp_n_batch
#define llama_n_seq_max harp_n_seq_max
#define llama_decode harp_decode
#define llama_process harp_process
#define llama_get_logits harp_get_logits
#define llama_get_logits_ith harp_get_logits_ith
#define llama_memory_clear harp_memory_clear
#define llama_memory_seq_rm harp_memory_seq_rm
#define llama_memory_seq_cp harp_memory_seq_cp
#define llama_memory_seq_keep harp_memory_seq_keep
#define llama_memory_seq_add harp_memory_seq_add
#define llama_memory_seq_div harp_memory_seq_div
#define llama_memory_seq_pos_min harp_memory_seq_pos_min
#define llama_memory_seq_pos_max harp_memory_seq_pos_max
#define llama_state_get_size harp_state_get_size
#define llama_state_get_data harp_state_get_data
#define llama_state_set_data harp_state_set_data
#define llama_state_seq_get_size harp_state_seq_get_size
#define llama_state_seq_get_data harp_state_seq_get_data
#define llama_state_seq_set_data harp_state_seq_set_data
#define llama_state_seq_get_size_ext harp_state_seq_get_size_ext
#define llama_state_seq_get_data_ext harp_state_seq_get_data_ext
#define llama_state_seq_set_data_ext harp_state_seq_set_data_ext
#define llama_state_save_file harp_state_save_file
#define llama_state_load_file harp_state_load_file
#define llama_state_seq_save_file harp_state_seq_save_file
#define llama_state_seq_load_file harp_state_seq_load_file
#define llama_sampler_sample harp_sampler_sample
#define llama_set_sampler harp_set_sampler

#endif /* HARP_DROP_IN_H */
