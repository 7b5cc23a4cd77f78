// Module harp._engine. Errors of the engine become harp.HarpError with the same code.
#include "engine.h"
#include "ggml-backend.h"
#include "harp/error.h"
#include "llama.h"

namespace harp::python {

namespace {

void raise(PyObject * type, const Error & error) {
    const std::string text = error.what();  // it may contain a path, which need not be UTF-8
    const nb::object message =
        nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
    const nb::object exception = nb::handle(type)(message, to_string(error.code()));
    PyErr_SetObject(type, exception.ptr());
}

}  // namespace

NB_MODULE(_engine, module) {
    module.doc() = "The compiled part of harp; use the package harp.";
    nb::set_leak_warnings(false);  // a daemon thread's sessions are still there when the interpreter ends
    llama_backend_init();
    watch_forks();
    nb::register_exception_translator([](const std::exception_ptr & pointer, void * /*unused*/) {
        try {
            std::rethrow_exception(pointer);
        } catch (const Error & error) {
            const nb::object type = nb::module_::import_("harp.errors").attr("HarpError");
            raise(type.ptr(), error);
        }
    });
    bind_model(module);
    bind_pass(module);
}

}  // namespace harp::python
