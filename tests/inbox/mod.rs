//! What a user who was away gets: the hand-over, reading, replay and acknowledgement of inboxes.

mod hand_over;
