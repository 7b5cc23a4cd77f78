#include "models.h"

namespace harp::server {

common_json model_of(const common_json & list, const std::string & id) {
    for (const common_json & model : list.at("data")) {
        if (model.at("id") == id) return model;
        for (const common_json & alias : model.at("aliases")) {
            if (alias == id) return model;
        }
    }
    return {{"error",
             {{"code", 404},
              {"message", "The model '" + id + "' does not exist; /v1/models lists those that do"},
              {"type", "not_found_error"}}}};
}

}  // namespace harp::server
