//! What every directory promises, run against memory and Redis.
