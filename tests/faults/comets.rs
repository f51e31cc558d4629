//! Comets that die, come back, hang, and answer every kind of nonsense.
