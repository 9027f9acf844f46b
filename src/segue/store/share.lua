-- Note in the hash KEYS[1] the field ARGV[1] with the value ARGV[2], if it is not there and fewer than ARGV[3] are.
-- Returns the value that stands, nothing when there is none.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held and redis.call('HLEN', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  held = ARGV[2]
end
return held
