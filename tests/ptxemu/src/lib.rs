//! A checking PTX interpreter.
