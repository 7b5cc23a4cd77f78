// In which order llama.cpp computes the rows of a batch.
//
// The reframing hook sees a micro-batch's token rows without their sequence ids, so their order must be known. With one
// KV stream it is the batch's own; with a stream a sequence, and for recurrent memory, llama.cpp regroups rows
// (llama_batch_allocr::split_equal). The hook checks the token ids of each micro-batch against this order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "forward/batch_rows.h"

namespace harp::forward {

enum class SplitPolicy {
    in_order,          ///< unified KV cache: rows as given, n_ubatch at a time
    equal,             ///< hybrid memory with a unified cache: equally many rows of each sequence
    equal_sequential,  ///< separate streams, recurrent memory: the same, of consecutive sequence ids only
};

/// @return the batch's row indices in the order of computation, [batch.size()]
[[nodiscard]] std::vector<size_t> computation_order(const BatchRows & batch, SplitPolicy policy, uint32_t n_ubatch);

}  // namespace harp::forward
