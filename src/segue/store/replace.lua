-- Set KEYS[1] to ARGV[2] if it holds ARGV[1]. Returns what it held.
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
end
return held
