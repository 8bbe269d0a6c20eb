"""Statistics of Gemma 2's attention and softcaps on a fixed set of drawings, in bounded memory."""
