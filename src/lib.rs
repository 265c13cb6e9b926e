//! Batched attention rollout.
