//! The outcomes of messages and of their recipients, as metrics and logs name them.

use crate::telemetry::label_enum;

label_enum! {
    /// The outcome of a message.
    pub(super) enum MessageOutcome as "outcome" {
        /// Every recipient was reached.
        Delivered = "delivered",
        /// Some recipients were reached, some are absent.
        PartiallyDelivered = "partly-delivered",
        /// No recipient was reached; it is stored, or a notification was sent, for some.
        Stored = "stored",
        /// No recipient was reached, and nothing is stored: an empty room, or all absent and dropped.
        NoRecipients = "nobody",
        /// A policy dropped it.
        Dropped = "dropped",
        /// It is older than `[delivery] max_age`.
        Expired = "expired",
        /// It is in the dead-letter topic.
        DeadLettered = "dead-lettered",
        /// The dead-letter topic rejects it permanently: it is lost.
        Lost = "lost",
        /// It was read from a dead-letter topic and failed again: it is not written again.
        DeadLetterAgain = "dead-letter-again",
    }
}

impl MessageOutcome {
    /// Whether it was not processed as it should be.
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::DeadLettered | Self::Lost | Self::DeadLetterAgain)
    }
}

label_enum! {
    /// The outcome for one recipient.
    pub(super) enum RecipientOutcome as "outcome" {
        Delivered = "delivered",
        Failed = "failed",
        Withheld = "withheld",
        Stored = "stored",
        Notified = "notified",
        Dropped = "dropped",
    }
}

label_enum! {
    /// The outcome for a user who returned while a message was stored: of its live delivery.
    pub(super) enum HandOverOutcome as "outcome" {
        /// The message was delivered over the new connection as well.
        Delivered = "delivered",
        /// The user has gone again.
        NotConnected = "not-connected",
        /// The comet or the directory did not accept it: the next replay has it.
        Failed = "failed",
    }
}
