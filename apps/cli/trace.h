// --trace FILE: one JSON line per step, with the top candidates of the vanilla, reframed and mixed logits.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "decoding/generate.h"
#include "harp/forward_pass.h"

namespace harp::cli {

class Trace {
  public:
    /// @param path file to write; empty: no trace
    /// @throws Error{io} if the file cannot be opened
    Trace(const std::string & path, const llama_vocab & vocab);

    /// Observes a pass from now on; the trace must outlive its last decode. No-op without a path or with HARP off.
    void watch(ForwardPass & pass);
    /// Writes the line of the step that chose `token`. @throws Error{io}, for example when the disk is full
    void write(const decoding::GeneratedToken & token);

  private:
    struct Closer {
        void operator()(std::FILE * file) const { std::fclose(file); }
    };
    std::string path_;
    const llama_vocab & vocab_;
    std::unique_ptr<std::FILE, Closer> file_;
    std::map<llama_pos, nlohmann::json> candidates_;  // [position of an output row of the latest batches]
};

}  // namespace harp::cli
