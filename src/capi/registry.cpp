#include "capi/registry.h"

#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "harp/registration.h"

namespace harp::capi {

namespace {

struct Registry {
    std::shared_mutex mutex;
    std::map<const llama_context *, std::unique_ptr<ForwardPass>> by_context;
    std::map<llama_memory_t, ForwardPass *> by_memory;
};

Registry & registry() {
    static Registry instance;
    return instance;
}

template <typename Map, typename Key>
ForwardPass * look_up(const Map & map, Key key) {
    const std::shared_lock lock(registry().mutex);
    const auto it = map.find(key);
    return it != map.end() ? &*it->second : nullptr;
}

}  // namespace

ForwardPass * find(const llama_context * context) {
    return look_up(registry().by_context, context);
}
ForwardPass * find(llama_memory_t memory) {
    return look_up(registry().by_memory, memory);
}
ForwardPass * find_enabled(const llama_context * context) {
    ForwardPass * pass = find(context);
    return pass != nullptr && pass->enabled() ? pass : nullptr;
}

llama_context * adopt(std::unique_ptr<ForwardPass> pass) {
    llama_context * context = pass->context();
    Registry & r = registry();
    const std::unique_lock lock(r.mutex);
    // models for embeddings have none, and NULL would stand for the last of them, which another thread may free
    if (llama_memory_t memory = llama_get_memory(context); memory != nullptr) r.by_memory[memory] = pass.get();
    r.by_context[context] = std::move(pass);
    return context;
}

bool release(llama_context * context) {
    Registry & r = registry();
    std::unique_ptr<ForwardPass> pass;  // declared before the lock, so destroyed after it is released
    const std::unique_lock lock(r.mutex);
    const auto it = r.by_context.find(context);
    if (it == r.by_context.end()) return false;
    r.by_memory.erase(llama_get_memory(context));
    pass = std::move(it->second);
    r.by_context.erase(it);
    return true;
}

}  // namespace harp::capi

namespace harp {

ForwardPass * find_pass(const llama_context * context) {
    return capi::find(context);
}

}  // namespace harp
