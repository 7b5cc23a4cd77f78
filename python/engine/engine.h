// The compiled part of the Python package: a thin layer with the names of C++. Users call python/harp/.
#pragma once

#include <cxxabi.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <clocale>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decoding/batch_score.h"
#include "decoding/generate.h"
#include "harp/forward_pass.h"
#include "model/loaded_model.h"

namespace harp::python {

namespace nb = nanobind;

/// While it exists, this thread has the C locale. llama.cpp reads and writes numbers ("0.5") by the locale, which the
/// program may have set.
class PlainLocale {
  public:
    PlainLocale() : before_(uselocale(plain())) {}
    ~PlainLocale() { uselocale(before_); }
    PlainLocale(const PlainLocale &) = delete;
    PlainLocale & operator=(const PlainLocale &) = delete;

  private:
    static locale_t plain() {
        static const locale_t locale = newlocale(LC_ALL_MASK, "C", nullptr);
        return locale;
    }
    locale_t before_;
};
using InPlainLocale = nb::call_guard<PlainLocale>;

/// Takes the interpreter lock by `take`. Where the interpreter is ending, Python ends a daemon thread that asks for the
/// lock (before 3.14) by unwinding its stack, which would end the process at the first function that is noexcept. So the
/// thread waits for the end of the process instead.
template <typename Take>
auto take_lock(Take take) {
#ifdef __GLIBCXX__
    try {
        return take();
    } catch (const abi::__forced_unwind &) {
        for (;;) pause();
    }
#else
    return take();
#endif
}

/// While it exists, other Python threads run.
class LockReleased {
  public:
    LockReleased() : state_(PyEval_SaveThread()) {}
    ~LockReleased() {
        take_lock([this] { PyEval_RestoreThread(state_); });
    }
    LockReleased(const LockReleased &) = delete;
    LockReleased & operator=(const LockReleased &) = delete;

  private:
    PyThreadState * state_;
};
/// While it exists, this thread has the lock.
class LockTaken {
  public:
    LockTaken() : state_(take_lock([] { return PyGILState_Ensure(); })) {}
    ~LockTaken() { PyGILState_Release(state_); }
    LockTaken(const LockTaken &) = delete;
    LockTaken & operator=(const LockTaken &) = delete;

  private:
    PyGILState_STATE state_;
};
/// In the C locale, and other Python threads run meanwhile.
using WithoutLock = nb::call_guard<PlainLocale, LockReleased>;

/// Refuses devices in a forked process, which cannot use what its parent opened. @throws Error{unsupported_call} if
/// there is one besides the CPU
void refuse_shared_devices();
/// Locked while a model is loaded: flags, default options and standard error are the process's.
[[nodiscard]] std::mutex & loading_mutex();
/// Makes forked processes able to compute. To be called once.
void watch_forks();

/// Names and values of options as text, as set_option() reads them; nullopt is HARP off.
using OptionTexts = std::optional<std::map<std::string, std::string>>;
/// @throws Error{invalid_option}
[[nodiscard]] std::optional<Options> read_options(const OptionTexts & texts);

/// A loaded model with its vocabulary and chat template. Immutable once created; many passes can use it.
class Model {
  public:
    /// @param arguments llama.cpp's flags
    /// @throws Error naming the file or the flag
    Model(const std::string & path, const std::vector<std::string> & arguments);

    [[nodiscard]] cli::LoadedModel & loaded() const { return *loaded_; }
    [[nodiscard]] const std::string & path() const { return path_; }
    [[nodiscard]] std::vector<llama_token> tokenize(const std::string & text, bool add_special,
                                                    bool parse_special) const;
    /// @param tokens of the vocabulary
    [[nodiscard]] std::string detokenize(const std::vector<llama_token> & tokens, bool special) const;

  private:
    std::string path_;
    std::unique_ptr<cli::LoadedModel> loaded_;
};

/// How tokens are sampled; temperature 0 is greedy.
struct Sampling {
    float temperature = 0;
    int top_k = 0;
    float top_p = 1;
    float min_p = 0;
    float repeat_penalty = 1;
    uint32_t seed = 0;
    std::string grammar;
};

/// A ForwardPass for Python: one caller at a time, one kind of work at a time.
class Pass {
  public:
    struct Size {
        uint64_t n_ctx = 2048;  ///< cells of each sequence
        uint64_t n_sequences = 1;
        bool is_unified = false;  ///< one pool of cells for all sequences
        uint64_t n_ctx_twin = 0;  ///< cells of each twin; 0: as many as its sequence
    };
    Pass(const Model & model, const std::optional<Options> & options, const Size & size);

    [[nodiscard]] ForwardPass & pass() const { return *pass_; }
    [[nodiscard]] const Model & model() const { return model_; }
    /// With speculation if the model's flags ask for it. @throws what Drafter::make throws
    [[nodiscard]] decoding::Generator & generator();
    [[nodiscard]] decoding::BatchScorer & scorer();
    /// Drops scores that were asked for and not delivered yet.
    void abandon_scores() { scorer_.reset(); }
    /// The pass for work that empties the memory and sets the options of its sequences itself.
    [[nodiscard]] ForwardPass & taken_over();
    /// The pass for calls that decode sequence 0 directly, under the session's own options. After other work its memory
    /// is empty.
    [[nodiscard]] ForwardPass & direct();
    /// Tokens that direct calls have put into sequence 0; none after other work.
    [[nodiscard]] llama_pos n_past();
    /// Options of one call. @throws Error{invalid_option}, also if the context was not created for them
    [[nodiscard]] std::optional<Options> read(const OptionTexts & texts) const;
    [[nodiscard]] decoding::Sampler new_sampler(const Sampling & sampling) const;

    struct Counts {
        Statistics pass;
        decoding::SpeculationStatistics speculation;
    };
    /// As of the end of the last call: another thread may be in the next one.
    [[nodiscard]] Counts counts() const;

    /// A call. While it exists, no other thread can begin one; its end renews counts().
    class Call {
      public:
        /// @throws Error{unsupported_call} if another thread is in a call
        explicit Call(Pass & pass);
        ~Call();
        Call(const Call &) = delete;
        Call & operator=(const Call &) = delete;

      private:
        Pass & pass_;
        std::unique_lock<std::mutex> lock_;
    };
    /// Removes a request: now or, if another thread is in a call, at the beginning of the next call.
    void cancel(size_t request);

  private:
    struct ContextDeleter {
        void operator()(llama_context * context) const;
    };
    void refuse_while_busy(const char * other) const;
    void take_out_cancelled();

    const Model & model_;
    std::optional<Options> options_;  // the session's; nullopt: HARP off
    std::unique_ptr<llama_context, ContextDeleter> context_;
    ForwardPass * pass_ = nullptr;  // owned by the context
    bool is_direct_ = true;         // sequence 0 has the session's options, and only what direct calls decoded
    std::unique_ptr<decoding::Drafter> drafter_;
    std::unique_ptr<decoding::Generator> generator_;
    std::unique_ptr<decoding::BatchScorer> scorer_;
    std::mutex mutex_;  // protects the above
    Counts counts_;
    mutable std::mutex counts_mutex_;
    std::mutex cancelled_mutex_;
    std::vector<size_t> cancelled_;  // requests to be removed
};

void bind_model(nb::module_ & module);
void bind_pass(nb::module_ & module);

}  // namespace harp::python
