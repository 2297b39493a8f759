//! What the agent tells the init process of a container's microVM, and what that answers.
