#pragma once
#include <Python.h>

namespace ff {

// Of Python's _host.direct_ops(library, exchange, Tensor, Parameter, requires_grad, grad_enabled, is_neg,
// increment_version, watching): a dict of the ops that the CPU library offers for direct calls. ImportError where they
// can't be had.
PyObject* direct_ops(PyObject* module, PyObject* arguments);

}  // namespace ff
